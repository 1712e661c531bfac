// Makes what is on the page like what the server has rendered anew, and leaves alone what is the same: focus, an open
// menu and a running transition survive. Nothing is ever parsed here but by DOMParser, which runs no scripts.

/** What a person has opened stays open. */
const THEIRS = new Set(["open"]);

const isBlank = (node) => node.nodeType === Node.TEXT_NODE && !node.data.trim();

function alike(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName && (one.id || "") === (other.id || "");
}

function attributes(from, to) {
  for (const { name, value } of [...to.attributes]) {
    if (from.getAttribute(name) !== value && !THEIRS.has(name)) from.setAttribute(name, value);
  }
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && !THEIRS.has(name)) from.removeAttribute(name);
  }
}

function place(parent, node, before) {
  // moveBefore keeps focus and transitions; older browsers do without.
  if (parent.moveBefore && node.isConnected) parent.moveBefore(node, before);
  else parent.insertBefore(node, before);
}

function children(from, to) {
  const wantedIds = new Set([...to.children].map((each) => each.id).filter(Boolean));
  const known = new Map();
  for (const each of [...from.children]) {
    if (!each.id) continue;
    if (wantedIds.has(each.id)) known.set(each.id, each);
    else each.remove();
  }
  let at = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    if (isBlank(wanted) && !(at && isBlank(at))) continue;
    while (at && isBlank(at) && !isBlank(wanted)) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
    const byId = wanted.id ? known.get(wanted.id) : undefined;
    const match = byId ?? (at && !at.id && alike(at, wanted) ? at : undefined);
    if (match && match === at) at = at.nextSibling;
    else if (match) place(from, match, at);
    if (match) morph(match, wanted);
    else from.insertBefore(document.importNode(wanted, true), at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/**
 * Make one node like another one, of another document.
 * @param {Node} from on the page
 * @param {Node} to as it is now
 */
export function morph(from, to) {
  if (!alike(from, to)) {
    from.replaceWith(document.importNode(to, true));
  } else if (from.nodeType === Node.TEXT_NODE) {
    if (from.data !== to.data) from.data = to.data;
  } else if (from.nodeType === Node.ELEMENT_NODE && !from.isEqualNode(to)) {
    attributes(from, to);
    children(from, to);
  }
}
