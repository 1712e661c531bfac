// Drag and drop in the line: where the batch is dropped, the server is asked what would happen, in the same words as
// for everybody. The buttons beside the handle do the same with a keyboard.
import { hold } from "./live.js";

const ROW = "[data-waiting] > .batch";

let dragged = null;

function clear() {
  for (const each of document.querySelectorAll(".drop-before, .drop-after, .dragged, .no-drop")) {
    each.classList.remove("drop-before", "drop-after", "dragged", "no-drop");
  }
}

/** Before the row or behind it: by the half over which the pointer is. */
function side(row, event) {
  const box = row.getBoundingClientRect();
  return event.clientY < box.top + box.height / 2 ? "before" : "after";
}

export function start(ask) {
  document.addEventListener("dragstart", (event) => {
    const handle = event.target.closest?.("[data-handle]");
    if (!handle) return;
    dragged = handle.closest(ROW);
    if (!dragged) return;
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("text/plain", dragged.dataset.batch);
    event.dataTransfer.setDragImage(dragged, 20, 20);
    dragged.classList.add("dragged");
    hold(true);
  });
  document.addEventListener("dragover", (event) => {
    const row = dragged && event.target.closest?.(ROW);
    if (!row) return;
    for (const each of document.querySelectorAll(".drop-before, .drop-after, .no-drop")) {
      if (each !== row) each.classList.remove("drop-before", "drop-after", "no-drop");
    }
    if (row === dragged) return;
    event.preventDefault();
    const fits = row.dataset.peer === dragged.dataset.peer;
    event.dataTransfer.dropEffect = fits ? "move" : "none";
    row.classList.toggle("no-drop", !fits);
    row.classList.toggle("drop-before", fits && side(row, event) === "before");
    row.classList.toggle("drop-after", fits && side(row, event) === "after");
  });
  document.addEventListener("drop", (event) => {
    const row = dragged && event.target.closest?.(ROW);
    if (!row || row === dragged) return;
    event.preventDefault();
    const back = `${location.pathname}${location.search}`;
    const where = new URLSearchParams({ place: side(row, event), other: row.dataset.batch, to: back });
    ask(`/batches/${dragged.dataset.batch}/steer/move?${where}`, dragged.querySelector(".name"));
  });
  document.addEventListener("dragend", () => {
    clear();
    dragged = null;
    hold(false);
  });
}
