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

function choose(name, number) {
  const choice = plots[name].choices[number];
  if (choice === undefined) return Promise.resolve();
  for (const button of document.querySelectorAll(`[data-plot="${name}"]`))
    button.setAttribute("aria-pressed", String(Number(button.dataset.choice) === number));
  return Plotly.update(at(name), { x: choice.x, y: choice.y }, {
    "xaxis.title.text": choice.title, "xaxis.autorange": true, "yaxis.autorange": true,
  });
}

function toggle(design, visible) {
  for (const button of document.querySelectorAll("[data-design]"))
    if (button.dataset.design === design) button.setAttribute("aria-pressed", String(visible));
  for (const [name, plot] of Object.entries(plots)) {
    const traces = plot.figure.data.flatMap((trace, n) => (trace.name === design ? [n] : []));
    if (traces.length) Plotly.restyle(at(name), { visible }, traces);
  }
}

// A page that loads itself again keeps what its reader chose.
const state = { choices: {}, hidden: [] };
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
  }
  remember();
});
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
  if (state.choices[name] !== undefined) await choose(name, state.choices[name]);
})).then(() => {
  for (const design of state.hidden) toggle(design, false);
  document.body.dataset.drawn = "true";
});
