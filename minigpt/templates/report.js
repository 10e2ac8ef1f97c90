"use strict";
// Draws the plots in the colours of the page and as the reader chose, and takes in newer pages.
let plots = {}; // by name: a figure, its choices, and the start that its y-axis leaves out
const margins = {}; // by name: what the labels beside the lines need, in pixels
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches; // a finger scrolls the page, it zooms nothing
const config = {
  responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
  modeBarButtons: [["toImage", "resetScale2d"]],
};
const at = (name) => document.getElementById("plot-" + name);

// A page that loads itself again keeps what its reader chose.
const remembered = "minigpt report " + location.pathname;
const state = { choices: {}, hidden: [], folds: {} };
try {
  Object.assign(state, JSON.parse(sessionStorage.getItem(remembered) ?? "{}"));
} catch { /* a browser that keeps nothing for files */ }
function remember() {
  try { sessionStorage.setItem(remembered, JSON.stringify(state)); } catch { /* as above */ }
}
const isHidden = (design) => state.hidden.includes(design);
const choiceOf = (name) =>
  plots[name].choices.find((choice) => choice.name === state.choices[name]) ?? plots[name].choices[0];

function themed({ xaxis, yaxis, ...layout }) {
  const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { gridcolor: value("--line"), linecolor: value("--line"), color: value("--text") };
  return {
    ...layout,
    font: { color: value("--text"), family: getComputedStyle(document.body).fontFamily },
    hoverlabel: { bgcolor: value("--back"), font: { color: value("--text") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: value("--faint") },
    xaxis: { ...xaxis, ...axis },
    yaxis: { ...yaxis, ...axis },
  };
}

// The range of y without the start of training, whose losses would flatten all that follow.
function fit(data, start) {
  const shown = data.filter((trace) => trace.visible && trace.x.length);
  if (!start || !shown.length) return {};
  const largest = (values) => values.reduce((one, other) => Math.max(one, other));
  const begin = start * largest(shown.flatMap((trace) => trace.x));
  const y = shown.flatMap((trace) => trace.y.filter((_, n) => trace.x[n] >= begin));
  const high = largest(y), low = -largest(y.map((value) => -value)), margin = 0.05 * (high - low);
  return { range: [low - margin, high + margin] };
}

// Draws a plot, or draws it again; the reader's zoom stays until the x-axis is another.
async function draw(name) {
  const plot = at(name), choice = choiceOf(name), { figure, start } = plots[name];
  const data = figure.data.map((trace, n) => ({
    ...trace, ...(choice && { x: choice.x[n], y: choice.y[n] }), visible: !isHidden(trace.name),
  }));
  const layout = themed(structuredClone(figure.layout)), isFirst = !plot._fullLayout;
  layout.uirevision = choice?.name ?? name;
  if (touch) layout.dragmode = false;
  if (choice) layout.xaxis.title.text = choice.title;
  if (margins[name]) layout.margin.r = margins[name];
  Object.assign(layout.yaxis, fit(data, start));
  await Plotly.react(plot, data, layout, config);
  if (isFirst) plot.on("plotly_afterplot", () => place(name));
  place(name);
}

// Puts each label beside the end of its line, moved apart where they would overlap.
function place(name) {
  const plot = at(name), legend = plot.previousElementSibling;
  if (!legend.matches(".beside") || !legend.querySelector("button")) return;
  const { _size: size, xaxis, yaxis } = plot._fullLayout;
  const buttons = [...legend.querySelectorAll("button")];
  const right = Math.ceil(Math.max(...buttons.map((b) => b.offsetWidth))) + 24;
  if (plot.layout.margin.r !== right) { // drawing again places them
    margins[name] = right;
    Plotly.relayout(plot, { "margin.r": right });
    return;
  }
  const clamp = (value, low, high) => Math.max(low, Math.min(value, high));
  const labels = buttons.map((button) => {
    const trace = plot.data.filter((t) => t.name === button.dataset.design && t.x.length).at(-1);
    const x = trace ? xaxis.d2p(trace.x.at(-1)) : size.w, y = trace ? yaxis.d2p(trace.y.at(-1)) : 0;
    return { button, x: size.l + clamp(x, 0, size.w), y: size.t + clamp(y, 0, size.h) };
  }).sort((a, b) => a.y - b.y);
  // Neighbours that overlap share one block, whose labels are on average where they should be.
  const gap = buttons[0].offsetHeight, blocks = [];
  const mean = (block) => block.sum / block.n;
  labels.forEach((label, n) => {
    let block = { sum: label.y - n * gap, n: 1 };
    while (blocks.length && mean(blocks.at(-1)) > mean(block)) {
      const above = blocks.pop();
      block = { sum: above.sum + block.sum, n: above.n + block.n };
    }
    blocks.push(block);
  });
  const least = size.t, most = size.t + size.h - (labels.length - 1) * gap;
  const middles = blocks.flatMap((b) => Array(b.n).fill(clamp(mean(b), least, most)));
  const left = size.l + size.w + 16;
  const lines = labels.map(({ button, x, y }, n) => {
    const middle = middles[n] + n * gap;
    button.style.left = left + "px";
    button.style.top = middle - gap / 2 + "px";
    const colour = button.querySelector("line").getAttribute("stroke");
    return `<line x1="${x + 3}" y1="${y}" x2="${left}" y2="${middle}" stroke="${colour}"/>`;
  });
  legend.querySelector(".leaders")?.remove();
  legend.insertAdjacentHTML("beforeend", `<svg class="leaders">${lines.join("")}</svg>`);
}

// Pages of files may not use the clipboard in every browser; all can copy a selection.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = document.body.appendChild(document.createElement("textarea"));
    field.value = text;
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

// Draws all plots, and presses the buttons above and beside them.
function redraw() {
  for (const button of document.querySelectorAll("[data-plot], [data-design]")) {
    const { plot, choice, design } = button.dataset;
    const pressed = plot === undefined ? !isHidden(design) : choiceOf(plot).name === choice;
    button.setAttribute("aria-pressed", String(pressed));
  }
  return Promise.all(Object.keys(plots).map(draw));
}

// Shows the content of the page as its reader left it.
async function show() {
  plots = JSON.parse(document.getElementById("plots").textContent);
  for (const fold of document.querySelectorAll("details"))
    fold.open = state.folds[fold.parentElement.id] ?? fold.open;
  await redraw();
  document.body.dataset.drawn = "true";
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const { plot, choice, design, copy: text } = button?.dataset ?? {};
  if (plot) state.choices[plot] = choice;
  if (design)
    state.hidden = isHidden(design) ? state.hidden.filter((d) => d !== design) : [...state.hidden, design];
  if (plot || design) {
    remember();
    redraw();
  }
  if (text) copy(text).then(() => {
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1500);
  });
});
document.addEventListener("toggle", ({ target: fold }) => {
  state.folds[fold.parentElement.id] = fold.open;
  remember();
}, true); // it does not bubble
dark.addEventListener("change", redraw);

// ---- a page of minigpt report --serve ----

// Takes in the content of a newer page. Plots stay, to be drawn again.
function take(page) {
  const old = document.querySelector("main"), main = document.adoptNode(page.querySelector("main"));
  const { scrollX, scrollY } = window;
  const tables = (root) => [...root.querySelectorAll("section[id] table")];
  const lefts = new Map(tables(old).map((table) => [table.closest("section").id, table.scrollLeft]));
  for (const empty of main.querySelectorAll(".plot")) {
    const plot = document.getElementById(empty.id);
    if (!plot) continue;
    plot.style.height = empty.style.height;
    empty.replaceWith(plot);
  }
  for (const plot of old.querySelectorAll(".plot")) Plotly.purge(plot);
  old.replaceWith(main);
  document.title = page.title;
  document.querySelector("h1").textContent = page.querySelector("h1").textContent;
  document.getElementById("plots").textContent = page.getElementById("plots").textContent;
  const drawn = show(); // opens the folds at once
  for (const table of tables(main)) table.scrollLeft = lefts.get(table.closest("section").id) ?? 0;
  scrollTo(scrollX, scrollY);
  return drawn;
}

// Asks for a newer page, again and again; a page that nobody sees does not.
async function poll() {
  const { tag, seconds } = document.querySelector("main").dataset;
  const connection = document.getElementById("connection");
  if (!document.hidden) {
    const headers = { "If-None-Match": `"${tag}"` };
    const answer = await fetch("/", { headers, cache: "no-store" }).catch(() => null);
    const text = answer?.status === 200 ? await answer.text().catch(() => null) : null;
    if (text) await take(new DOMParser().parseFromString(text, "text/html"));
    if (text || answer?.status === 304) connection.textContent = "";
    else connection.textContent ||=
      `No answer since ${new Date().toLocaleTimeString()}: minigpt report --serve has ended.`;
  }
  setTimeout(poll, 1000 * seconds);
}

show().then(() => {
  if (document.querySelector("main").dataset.tag) poll();
});
