"""Where the views are."""

from django.urls import path

from newsletter import views

urlpatterns = [path("issues", views.publish), path("issues/<int:number>", views.look)]
