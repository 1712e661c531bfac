// Everything works without this file, as pages and forms. With it, questions are asked in a dialog on the same page,
// the page is live, batches can be dragged, and the theme can be chosen.
import * as dragging from "./dragging.js";
import * as live from "./live.js";

const FOCUS = "batching-focus";

/** What was announced is heard by those who do not see it. */
export function announce(text) {
  document.getElementById("announce").textContent = text;
}

/** Ask in a dialog what the page behind a link asks. Whatever goes wrong, the page itself is still there to go to. */
async function ask(href, opener) {
  const url = new URL(href, location.href);
  const kind = url.pathname.startsWith("/batches/") ? "confirm" : "keep";
  const part = new URL(url);
  part.searchParams.set("parts", kind);
  let question = null;
  try {
    const answer = await fetch(part, { signal: AbortSignal.timeout(15000), headers: { Accept: "text/html" } });
    if (answer.ok && !answer.redirected) {
      question = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(`part-${kind}`);
    }
  } catch {
    question = null;
  }
  if (!question) {
    location.assign(url);
    return;
  }
  const dialog = document.createElement("dialog");
  dialog.setAttribute("aria-labelledby", "h-confirm");
  dialog.append(document.importNode(question, true));
  dialog.querySelector("[data-back]")?.addEventListener("click", (event) => {
    event.preventDefault();
    dialog.close();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside it
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    opener?.focus?.();
  });
  dialog.querySelector("form")?.addEventListener("submit", () => {
    for (const button of dialog.querySelectorAll("button")) button.disabled = true;
  });
  document.body.append(dialog);
  dialog.showModal();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-ask]");
  if (!link || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  const menu = link.closest("details.menu");
  if (menu) menu.open = false;
  ask(link.href, menu ? menu.querySelector("summary") : link);
});

// One menu at a time, and Escape closes it.
document.addEventListener(
  "toggle",
  (event) => {
    if (!event.target.matches?.("details.menu") || !event.target.open) return;
    for (const each of document.querySelectorAll("details.menu[open]")) {
      if (each !== event.target) each.open = false;
    }
  },
  true,
);
document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && document.activeElement?.closest?.("details.menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});
document.addEventListener("click", (event) => {
  for (const each of document.querySelectorAll("details.menu[open]")) {
    if (!each.contains(event.target)) each.open = false;
  }
});

// After a step up or down the page is another one; the focus goes back to the button, so that it can be pressed again.
document.addEventListener("submit", (event) => {
  const id = event.submitter?.id;
  if (!id) return;
  try {
    sessionStorage.setItem(FOCUS, id);
    sessionStorage.setItem(`${FOCUS}-y`, String(scrollY));
  } catch {
    // Storage is forbidden: the focus begins at the top.
  }
});

function settle() {
  const flash = document.getElementById("flash");
  let id = null;
  try {
    id = sessionStorage.getItem(FOCUS);
    sessionStorage.removeItem(FOCUS);
  } catch {
    id = null;
  }
  const before = id && document.getElementById(id);
  if (before) {
    before.focus({ preventScroll: true });
    scrollTo(0, Number(sessionStorage.getItem(`${FOCUS}-y`) ?? 0));
    if (flash) announce(flash.textContent);
  } else if (flash) {
    flash.focus({ preventScroll: true });
  }
}

function chooseTheme() {
  const button = document.getElementById("theme");
  const names = { system: "auto", light: "light", dark: "dark" };
  const order = ["system", "light", "dark"];
  const root = document.documentElement;
  const show = () => {
    button.querySelector("span").textContent = names[root.dataset.theme ?? "system"];
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = order[(order.indexOf(root.dataset.theme ?? "system") + 1) % order.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      if (next === "system") localStorage.removeItem("batching-theme");
      else localStorage.setItem("batching-theme", next);
    } catch {
      // Storage is forbidden: the choice lasts as long as the page.
    }
    show();
  });
  show();
}

chooseTheme();
settle();
live.start();
dragging.start(ask);
