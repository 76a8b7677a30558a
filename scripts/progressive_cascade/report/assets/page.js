// SPDX-License-Identifier: Apache-2.0
// The controls of the page.
"use strict";

const one = (selector) => document.querySelector(selector);
const all = (selector) => Array.from(document.querySelectorAll(selector));
const SIDES = [["R", "L"], ["A", "P"], ["S", "I"]];
let viewer = null;
let mark = null;

/** "12 mm R": a coordinate as its distance from the isocentre towards a side of the patient. */
function side(mm, axis) {
  return `${SIDES[axis][mm < 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)}`;
}

/** Light, dark, or what the system prefers. */
function bindTheme() {
  const root = document.documentElement, button = one("#theme");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : !matchMedia("(prefers-color-scheme: light)").matches;
  const say = () => { button.textContent = isDark() ? "Light page" : "Dark page"; button.setAttribute("aria-pressed", String(!isDark())); };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; say(); });
  one("#print").addEventListener("click", () => print());
  say();
}

/** The sliders between a radiograph and its re-projection, and the difference of both. */
function bindFilms() {
  for (const slider of all(".cut")) {
    const light = slider.closest(".film").querySelector(".light");
    const move = () => light.style.setProperty("--cut", `${slider.value}%`);
    slider.addEventListener("input", move);
    light.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      const box = light.getBoundingClientRect();
      slider.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
      move();
    });
    light.addEventListener("dragstart", (event) => event.preventDefault());
    move();
  }
  const box = one("#film-difference");
  if (box) box.addEventListener("change", () => one(".pair").classList.toggle("show-difference", box.checked));
}

/** Marks where a point of the patient falls on each radiograph. */
function markFilms(mm) {
  for (const film of all(".film")) {
    const matrix = JSON.parse(film.dataset.matrix), [rows, columns] = JSON.parse(film.dataset.shape);
    const [u, v, w] = matrix.map((row) => row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2] + row[3]);
    const dot = film.querySelector(".dot"), x = (u / w + 0.5) / columns, y = (v / w + 0.5) / rows;
    dot.hidden = !one("#crosshair").checked || x < 0 || x > 1 || y < 0 || y > 1;
    dot.style.left = `${100 * x}%`;
    dot.style.top = `${100 * y}%`;
  }
}

/** Says where the crosshair is and what is there. */
function describe(mm) {
  const { ct, truth, sigma } = viewer.values_at();
  const texts = [`${side(mm[0], 0)}  ${side(mm[1], 1)}  ${side(mm[2], 2)} mm`, `${ct} HU`];
  if (sigma !== undefined) texts[1] += ` ± ${Math.round(sigma)}`;
  if (truth !== undefined) texts.push(`true CT ${truth} HU`, `difference ${ct - truth > 0 ? "+" : ""}${ct - truth} HU`);
  one("#readout").textContent = texts.join("  ·  ");
  const voxel = viewer.voxel();
  for (const slider of all(".slice")) {
    const axis = Number(slider.dataset.axis);
    slider.value = voxel[axis];
    const text = `${voxel[axis] + 1} / ${viewer.size[axis]}  (${side(mm[axis], axis)} mm)`;
    slider.nextElementSibling.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }
  one("#distance").textContent = mark ? `${Math.hypot(...mm.map((value, i) => value - mark[i])).toFixed(1)} mm from the mark` : "";
  markFilms(mm);
}

function describeWindow(low, high) {
  const chosen = all("input[name=window]").find((input) => input.value === windowValue(low, high));
  for (const input of all("input[name=window]")) input.checked = input === chosen;
  one("#window-state").textContent = `W ${Math.round(high - low)}  L ${Math.round((high + low) / 2)}`;
}

const windowValue = (low, high) => `${Math.round(high - low)},${Math.round((high + low) / 2)}`;

function windowOf(input) {
  const [width, level] = input.value.split(",").map(Number);
  return [level - width / 2, level + width / 2];
}

function bindViewer() {
  for (const input of all("input[name=window]")) input.addEventListener("change", () => viewer.setWindow(...windowOf(input)));
  for (const input of all("input[name=drag]")) input.addEventListener("change", () => viewer.setDrag(input.value));
  for (const input of all("input[name=view]")) input.addEventListener("change", () => viewer.setView(input.value));
  for (const slider of all(".slice")) {
    const axis = Number(slider.dataset.axis);
    slider.max = viewer.size[axis] - 1;
    slider.addEventListener("input", () => viewer.goTo(axis, Number(slider.value)));
  }
  toggle("#uncertainty", (on) => viewer.setUncertainty(on));
  toggle("#difference", (on) => {
    one("#truth-name").textContent = on ? "Reconstruction − true CT" : "True CT";
    return viewer.setDifference(on);
  });
  toggle("#crosshair", (on) => { viewer.setCrosshair(on); markFilms(viewer.point()); });
  one("#reset").addEventListener("click", () => { setMark(null); viewer.reset(); });
  one("#mark").addEventListener("click", () => setMark(viewer.point()));
  viewer.onmove = describe;
  viewer.onwindow = describeWindow;
  describe(viewer.point());
  document.addEventListener("keydown", pressKey, true);
}

function setMark(mm) {
  mark = mm;
  describe(viewer.point());
}

/** A checkbox, with the colour scale that belongs to it. */
function toggle(selector, change) {
  const box = one(selector), scale = one(`${selector}-scale`);
  if (!box) return;
  box.addEventListener("change", async () => {
    if (scale) scale.hidden = !box.checked;
    await change(box.checked);
  });
}

const CLICKS = { u: "#uncertainty", d: "#difference", x: "#crosshair", r: "#reset", m: "#mark" };
const VIEWS = { a: "0", c: "1", s: "2", v: "all" };
const MOVES = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1] };
const TURNS = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] };

/** Keys of the viewer; on a canvas they never reach NiiVue, whose own mean other things. */
function pressKey(event) {
  const onCanvas = event.target instanceof HTMLCanvasElement;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const windows = all("input[name=window]");
  let used = true;
  if (CLICKS[key]) { const button = one(CLICKS[key]); if (button) button.click(); }
  else if (VIEWS[key]) one(`input[name=view][value="${VIEWS[key]}"]`).click();
  else if (windows[Number(key) - 1]) windows[Number(key) - 1].click();
  else if (onCanvas && event.target.id === "rendering" && TURNS[key]) viewer.turn(...TURNS[key]);
  else if (onCanvas && MOVES[key]) { const [axis, by] = MOVES[key]; viewer.goTo(axis, viewer.voxel()[axis] + by); }
  else used = false;
  if (used) event.preventDefault();
  if (onCanvas && key !== "Tab") event.stopPropagation();
}

/** The rendering: at once with a graphics card, else when it is asked for. */
async function bindRendering() {
  const corner = one(".corner"), button = one("#render");
  const open = async () => {
    button.textContent = "Rendering …";
    await viewer.openRendering();
  };
  button.addEventListener("click", open);
  corner.hidden = false;
  if (!viewer.isSlow()) await open();
}

/** Says how far the page is; a browser's performance panel shows when. */
function reach(state) {
  document.documentElement.dataset.ready = state;
  performance.mark(state);
}

async function start() {
  bindTheme();
  bindFilms();
  const chosen = one("input[name=window]:checked"), root = document.documentElement;
  try {
    const volumes = await unpackAll();
    const { shape, step } = pageData.volumes.ct;
    for (const canvas of all(".first")) await paintFirst(canvas, volumes[canvas.dataset.volume], shape, step, windowOf(chosen));
    await paintDensest(one("#densest"), volumes.ct, shape, step);
    one("#loading").textContent = "Starting the viewer …";
    reach("picture");
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
    viewer = await Viewer.open(volumes, windowOf(chosen));
    bindViewer();
    describeWindow(...windowOf(chosen));
    await viewer.drawn();
    one("#loading").hidden = true;
    for (const canvas of all(".first")) canvas.remove();
    reach("slices");
    await bindRendering();
    reach("all");
  } catch (error) {
    // Without WebGL 2 the pictures of the page are still worth showing.
    root.classList.add("plain");
    reach("plain");
    const box = one("#trouble");
    box.hidden = false;
    box.textContent = `The viewer needs a browser with WebGL 2 (${error.message}). The pictures below show the same CT.`;
  }
}

start();
