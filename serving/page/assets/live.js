// Keeps the page up to date from the server's event stream. The server makes the markup; this file only puts it in place,
// changing as little as possible, so that focus, open tables, scroll positions and selections stay.
"use strict";

const status = document.getElementById("status");
let stream = null;
let retry = 0;

function say(state, words) {
  if (status.dataset.state === state) return;
  status.dataset.state = state;
  status.lastElementChild.textContent = words;
}

// -- putting new markup in place ------------------------------------------------------------------------------------

const kept = (node) => !(node.nodeType === 1 && node.hasAttribute("data-own"));
const sticky = { DETAILS: ["open"], OPTION: ["selected"] };

function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== 1) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  const stays = sticky[old.nodeName] || [];
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !stays.includes(name) && name !== "data-live") old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (!stays.includes(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const mine = [...old.childNodes].filter(kept);
  const theirs = [...fresh.childNodes];
  theirs.forEach((child, n) => (n < mine.length ? morph(mine[n], child) : old.append(child)));
  mine.slice(theirs.length).forEach((child) => child.remove());
}

function place(id, html) {
  const old = document.getElementById(id);
  const template = document.createElement("template");
  template.innerHTML = html;
  if (old && template.content.firstElementChild) morph(old, template.content.firstElementChild);
}

// -- the stream -----------------------------------------------------------------------------------------------------

function connect() {
  if (stream) stream.close();
  stream = new EventSource("/live" + location.search);
  stream.onopen = () => { retry = 0; say("live", "Live"); };
  stream.onmessage = (event) => {
    for (const [id, html] of Object.entries(JSON.parse(event.data))) place(id, html);
  };
  stream.onerror = () => {
    say("lost", "Reconnecting");
    // The browser tries again by itself unless the server refused: then this does, ever more slowly.
    if (stream.readyState === EventSource.CLOSED) {
      retry = Math.min(retry + 1, 6);
      setTimeout(connect, 1000 * 2 ** retry);
    }
  };
}

function show(url) {
  history.replaceState(null, "", url);
  connect();
}

document.addEventListener("change", (event) => {
  if (event.target.id !== "campaign") return;
  const query = new URLSearchParams(location.search);
  if (event.target.value) query.set("campaign", event.target.value);
  else query.delete("campaign");
  show("/" + (query.size ? "?" + query : ""));
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-view]");
  if (link && !event.metaKey && !event.ctrlKey && !event.shiftKey) {
    event.preventDefault();
    show(link.href);
  }
});

// -- copy buttons and the theme -------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch (error) {
    // No clipboard without https: select the text, a key press copies it.
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1600);
});

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("adloop-theme", root.dataset.theme);
  } catch (error) {
    console.info("The theme cannot be kept:", error.message);
  }
});

// -- reading a chart: the pointer, or the arrow keys, walk through the rows of its table ------------------------------

function readout(box, n) {
  const svg = box.querySelector("svg.chart");
  const table = box.parentElement.querySelector(".figures table");
  const places = (svg.dataset.x || "").split(" ").filter(Boolean).map(Number);
  const row = table && table.tBodies[0].rows[n];
  clear(box);
  if (!row || n < 0 || n >= places.length) return;
  box.dataset.live = n;
  const cursor = own(box, "cursor");
  const words = own(box, "readout");
  const head = [...table.tHead.rows[0].cells];
  [...row.cells].forEach((cell, k) => {
    const line = document.createElement(k ? "span" : "b");
    line.textContent = k ? `${head[k].textContent} ${cell.textContent}` : cell.textContent;
    words.append(line, ...(k ? [document.createElement("br")] : []));
  });
  cursor.style.left = places[n] + "%";
  const left = (places[n] / 100) * box.clientWidth;
  const beside = left > box.clientWidth / 2 ? left - words.offsetWidth - 12 : left + 12;
  words.style.left = Math.max(0, Math.min(beside, box.clientWidth - words.offsetWidth)) + "px";
}

function own(box, look) {
  const node = document.createElement("div");
  node.className = look;
  node.dataset.own = "";
  node.ariaHidden = "true";
  box.append(node);
  return node;
}

function clear(box) {
  delete box.dataset.live;
  box.querySelectorAll("[data-own]").forEach((node) => node.remove());
}

function nearest(box, clientX) {
  const frame = box.getBoundingClientRect();
  const share = (100 * (clientX - frame.left)) / frame.width;
  const places = (box.querySelector("svg.chart").dataset.x || "").split(" ").filter(Boolean).map(Number);
  return places.reduce((best, x, n) => (Math.abs(x - share) < Math.abs(places[best] - share) ? n : best), 0);
}

for (const kind of ["pointermove", "pointerdown"]) {
  document.addEventListener(kind, (event) => {
    const box = event.target.closest && event.target.closest(".plot-box");
    document.querySelectorAll(".plot-box[data-live]").forEach((other) => other !== box && clear(other));
    if (box) readout(box, nearest(box, event.clientX));
  });
}

document.addEventListener("keydown", (event) => {
  const box = event.target.closest && event.target.closest(".plot-box");
  if (!box) return;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const last = (box.querySelector("svg.chart").dataset.x || "").split(" ").filter(Boolean).length - 1;
  if (event.key === "Escape") clear(box);
  if (!step || last < 0) return;
  event.preventDefault();
  const now = box.dataset.live === undefined ? (step > 0 ? -1 : last + 1) : Number(box.dataset.live);
  readout(box, Math.max(0, Math.min(last, now + step)));
});

document.addEventListener("focusout", (event) => {
  const box = event.target.closest && event.target.closest(".plot-box");
  if (box) clear(box);
});

connect();
