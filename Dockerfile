# One image for every part: worker, manager, migrations, dashboard, Flower. What it runs is the command
# (docker-compose.yml).
#
# Your handlers: mount them at /app/handlers, as docker-compose.yml does, or build on top of this image:
#
#     FROM batching:local
#     COPY my_handlers.py /app/handlers/
#     ENV BATCHING_HANDLERS=my_handlers
#
# A handler's own dependencies need the second way, with
# `USER root`, `RUN pip --python /opt/venv/bin/python install ...` and `USER 10001:10001` again.

FROM python:3.13.15-slim-trixie AS build

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# Without pip: the environment is filled from outside and carries no installer into the final image.
RUN python -m venv --without-pip /opt/venv

WORKDIR /src

# The dependencies come first and from pyproject.toml alone, so that a change of source reuses this layer.
COPY pyproject.toml ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
print(*project['dependencies'], *extras['flower'], *extras['tracing'], *extras['web'], sep='\n')" > requirements.txt \
    && pip --python /opt/venv/bin/python install --requirement requirements.txt

COPY README.md LICENSE ./
COPY batching ./batching
COPY workers ./workers
RUN pip wheel --no-deps --wheel-dir /wheels . \
    && pip --python /opt/venv/bin/python install --no-deps /wheels/*.whl


FROM python:3.13.15-slim-trixie

# A number and not a name: Kubernetes' `runAsNonRoot` can check only a number, and a mounted folder needs one to chown
# to. No home folder, no shell: nothing here is for logging in.
RUN groupadd --gid 10001 batching \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /app \
        --shell /usr/sbin/nologin batching \
    && mkdir --parents /app/handlers

COPY --from=build /opt/venv /opt/venv

# Unbuffered: the last lines before a kill are the ones that matter. No bytecode: the root file system is read-only, and
# pip has compiled what is installed. Fault handler: a handler that crashes its pool child in C leaves a traceback.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app/handlers \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1

WORKDIR /app
USER 10001:10001

# No entry point: `docker run batching:local batching list` and `docker compose run worker celery ...` read as they are.
ENTRYPOINT []
CMD ["celery", "-A", "workers", "worker", "--loglevel=INFO"]
