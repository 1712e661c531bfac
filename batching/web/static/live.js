// Keeps the parts of a page up to date: the stream of events says when to look, the server renders, and what is new is
// put in its place. When the stream is cut, or says that Redis is away, the page says so and looks by itself.
import { morph } from "./morph.js";

/** Milliseconds between two looks while nothing tells of changes. */
const BLIND = 2000;
/** Milliseconds after which an answer is given up. */
const PATIENCE = 15000;
const TICK = 250;

const parts = () => [...document.querySelectorAll("[data-live]")];
const number = (part, name) => 1000 * Number(part.dataset[name] || 5);

const looked = new Map(); // when each part was asked for, by its name
const due = new Set(); // parts about which there is news
let source = null;
let connected = false;
let stale = ""; // why what is shown may be behind; empty when it is not
let failed = ""; // why the last look failed
let live = false; // whether changes are told, rather than looked for
let asking = false;
let lost = 0; // when the stream was cut
let held = false; // a person is dragging

export const hold = (yes) => {
  held = yes;
};

function banner() {
  const element = document.getElementById("stale");
  const since = document.getElementById("asof")?.textContent ?? "";
  let text = "";
  if (failed) text = `Stale: ${failed}. This is how it was at ${since}; trying again.`;
  else if (!connected && lost && Date.now() - lost > 1500) {
    text = "The live stream is cut. Connecting again; meanwhile this page looks every few seconds.";
  } else if (stale) text = `Live updates are slow: ${stale}.`;
  if (element.textContent !== text) element.textContent = text;
  const line = document.getElementById("liveness");
  if (line) line.textContent = failed ? "" : live ? "Live." : "Looking every few seconds.";
}

function mark(names) {
  for (const part of parts()) {
    if (!names || names.has(part.dataset.live)) due.add(part.dataset.live);
  }
}

function wanted(now) {
  return parts().filter((part) => {
    const name = part.dataset.live;
    const ago = now - (looked.get(name) ?? started);
    const patience = live ? number(part, "poll") : Math.max(BLIND, number(part, "every"));
    return (due.has(name) && ago >= number(part, "every")) || ago >= patience;
  });
}

async function look(chosen) {
  const names = chosen.map((part) => part.dataset.live);
  const now = Date.now();
  for (const name of names) {
    looked.set(name, now);
    due.delete(name);
  }
  const url = new URL(location.href);
  url.hash = "";
  url.searchParams.set("parts", names.join(","));
  const answer = await fetch(url, { signal: AbortSignal.timeout(PATIENCE), headers: { Accept: "text/html" } });
  if (answer.redirected && new URL(answer.url).pathname === "/login") {
    location.reload(); // the session is over
    return;
  }
  if (answer.status === 404) throw new Error("this is not there any more");
  if (!answer.ok) throw new Error(`the dashboard answers ${answer.status}`);
  put(new DOMParser().parseFromString(await answer.text(), "text/html"), names);
}

function put(fresh, names) {
  const focused = document.activeElement;
  for (const name of names) {
    const present = document.querySelector(`[data-live="${name}"]`);
    const part = fresh.querySelector(`[data-live="${name}"]`);
    if (present && part) morph(present, part);
  }
  if (focused?.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
  const asof = document.getElementById("asof");
  const at = new Date();
  if (asof) {
    asof.dateTime = at.toISOString();
    asof.textContent = `${at.toISOString().slice(11, 19)} UTC`;
  }
  document.dispatchEvent(new CustomEvent("batching:fresh"));
}

async function tick() {
  if (asking || held || document.hidden) return;
  const chosen = wanted(Date.now());
  if (!chosen.length) return banner();
  asking = true;
  try {
    await look(chosen);
    failed = "";
  } catch (error) {
    failed = error instanceof TypeError ? "the dashboard cannot be reached" : String(error.message ?? error);
    if (error.name === "TimeoutError") failed = "the dashboard does not answer";
    for (const part of chosen) due.add(part.dataset.live);
  } finally {
    asking = false;
    banner();
  }
}

function connect() {
  const path = document.body.dataset.events;
  if (!path) return;
  source?.close();
  source = new EventSource(path);
  source.addEventListener("open", () => {
    connected = true;
    lost = 0;
    mark(); // what happened meanwhile
    banner();
  });
  source.addEventListener("status", (event) => {
    const said = JSON.parse(event.data);
    live = Boolean(said.live);
    stale = said.stale ? String(said.reason) : "";
    banner();
  });
  for (const kind of ["batch", "gone"]) source.addEventListener(kind, () => mark());
  source.addEventListener("error", () => {
    if (connected || !lost) lost = Date.now();
    connected = false;
    live = false;
    // The browser connects again by itself, unless the answer was an error.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, BLIND);
    banner();
  });
}

const started = Date.now();

export function start() {
  if (!parts().length) {
    const line = document.getElementById("liveness");
    if (line) line.textContent = "";
    return;
  }
  connect();
  setInterval(tick, TICK);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) mark();
  });
  window.addEventListener("pagehide", () => source?.close());
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) connect();
  });
}
