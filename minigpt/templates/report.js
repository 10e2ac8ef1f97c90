"use strict";
// Draws the plots, switches what they show, and gives them the colours of the page.
const plots = JSON.parse(document.getElementById("plots").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const remembered = "minigpt report " + location.pathname;
const at = (name) => document.getElementById("plot-" + name);

function theme() {
  const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { gridcolor: value("--line"), linecolor: value("--line"), color: value("--text") };
  const layout = {
    "font.color": value("--text"),
    "font.family": getComputedStyle(document.body).fontFamily,
    "hoverlabel.bgcolor": value("--back"),
    "hoverlabel.font.color": value("--text"),
    "modebar.bgcolor": "rgba(0,0,0,0)",
    "modebar.color": value("--faint"),
  };
  for (const [key, colour] of Object.entries(axis)) {
    layout["xaxis." + key] = colour;
    layout["yaxis." + key] = colour;
  }
  return layout;
}

// Leaves the start of training, whose losses would flatten all that follow, out of the y-axis.
function fit(name) {
  const shown = at(name).data.filter((trace) => trace.visible !== false && trace.x.length);
  if (!plots[name].start || !shown.length) return Promise.resolve();
  const largest = (values) => values.reduce((one, other) => Math.max(one, other));
  const begin = plots[name].start * largest(shown.flatMap((trace) => trace.x));
  const y = shown.flatMap((trace) => trace.y.filter((_, n) => trace.x[n] >= begin));
  const high = largest(y), low = -largest(y.map((value) => -value)), margin = 0.05 * (high - low);
  return Plotly.relayout(at(name), { "yaxis.range": [low - margin, high + margin] });
}

function choose(name, number) {
  const choice = plots[name].choices[number];
  if (choice === undefined) return Promise.resolve();
  for (const button of document.querySelectorAll(`[data-plot="${name}"]`))
    button.setAttribute("aria-pressed", String(Number(button.dataset.choice) === number));
  return Plotly.update(at(name), { x: choice.x, y: choice.y }, {
    "xaxis.title.text": choice.title, "xaxis.autorange": true, "yaxis.autorange": true,
  }).then(() => fit(name));
}

function toggle(design, visible) {
  for (const button of document.querySelectorAll("[data-design]"))
    if (button.dataset.design === design) button.setAttribute("aria-pressed", String(visible));
  for (const [name, plot] of Object.entries(plots)) {
    const traces = plot.figure.data.flatMap((trace, n) => (trace.name === design ? [n] : []));
    if (traces.length) Plotly.restyle(at(name), { visible }, traces).then(() => fit(name));
  }
}

// Puts each label beside the end of its line, moved apart where they would overlap.
function place(name) {
  const plot = at(name), legend = plot.previousElementSibling;
  if (!legend.matches(".beside") || !legend.querySelector("button")) return;
  const { _size: size, xaxis, yaxis } = plot._fullLayout;
  const buttons = [...legend.querySelectorAll("button")];
  const right = Math.ceil(Math.max(...buttons.map((b) => b.offsetWidth))) + 24;
  if (plot.layout.margin.r !== right) { // drawing again places them
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

// A page that loads itself again keeps what its reader chose.
const state = { choices: {}, hidden: [], folds: {} };
try {
  Object.assign(state, JSON.parse(sessionStorage.getItem(remembered) ?? "{}"));
} catch { /* a browser that keeps nothing for files */ }
function remember() {
  try { sessionStorage.setItem(remembered, JSON.stringify(state)); } catch { /* as above */ }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.plot) {
    state.choices[button.dataset.plot] = Number(button.dataset.choice);
    choose(button.dataset.plot, Number(button.dataset.choice));
  } else if (button?.dataset.design) {
    const design = button.dataset.design;
    const visible = state.hidden.includes(design);
    state.hidden = visible ? state.hidden.filter((d) => d !== design) : [...state.hidden, design];
    toggle(design, visible);
  } else if (button?.dataset.copy) {
    copy(button.dataset.copy).then(() => {
      button.textContent = "copied";
      setTimeout(() => (button.textContent = "copy"), 1500);
    });
  }
  remember();
});
for (const fold of document.querySelectorAll("details")) {
  fold.open = state.folds[fold.parentElement.id] ?? fold.open;
  fold.addEventListener("toggle", () => {
    state.folds[fold.parentElement.id] = fold.open;
    remember();
  });
}
dark.addEventListener("change", () => {
  for (const name of Object.keys(plots)) Plotly.relayout(at(name), theme());
});

const touch = matchMedia("(pointer: coarse)").matches; // a finger scrolls the page, it zooms nothing
const config = {
  responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
  modeBarButtons: [["toImage", "resetScale2d"]],
};
Promise.all(Object.entries(plots).map(async ([name, plot]) => {
  if (touch) plot.figure.layout.dragmode = false;
  await Plotly.newPlot(at(name), plot.figure.data, plot.figure.layout, config);
  await Plotly.relayout(at(name), theme());
  at(name).on("plotly_afterplot", () => place(name));
  await fit(name);
  place(name);
  if (state.choices[name] !== undefined) await choose(name, state.choices[name]);
})).then(() => {
  for (const design of state.hidden) toggle(design, false);
  document.body.dataset.drawn = "true";
});
