// Paths of beliefs in two dimensions: Gaussians as ellipses, categories on the simplex.
import { categorical, gaussian } from "./proximal.js";

const NAMES = { w2: "Wasserstein-2", kl: "KL", "reverse-kl": "reverse KL", "fisher-rao": "Fisher–Rao" };
const CORNERS = [[-0.9, 0], [0.9, 0], [0, 0.9 * Math.sqrt(3)]];
const LETTERS = ["A", "B", "C"];

const ends = {
  prior: { mean: [-1.6, -0.9], std: [0.9, 0.9], classes: [0.8, 0.18, 0.02] },
  target: { mean: [1.5, 1.0], std: [0.25, 0.7], classes: [0.01, 0.29, 0.7] },
};

function element(name, attributes, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

/** The Gaussian at f, as [mean, std] of both coordinates. */
function gaussianAt(name, f) {
  const { prior, target } = ends;
  const moved = [0, 1].map((i) => gaussian[name](prior.mean[i], prior.std[i], target.mean[i], target.std[i], f));
  return [moved.map((part) => part[0]), moved.map((part) => part[1])];
}

const onSimplex = (p) => [0, 1].map((i) => p.reduce((sum, value, k) => sum + value * CORNERS[k][i], 0));
const fixed = (values) => values.map((value) => value.toFixed(2).replace("-", "−")).join(", ");
const FRACTIONS = Array.from({ length: 61 }, (_, k) => k / 60);

export function paths(section, play) {
  const [plane, simplex] = [section.querySelector("#plane"), section.querySelector("#simplex")];
  const slider = section.querySelector(".at");
  const boxes = {};
  for (const [name, title] of Object.entries(NAMES)) {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, name });
    const swatch = element("svg", { viewBox: "0 0 36 12", "aria-hidden": "true" });
    element("path", { d: "M2 6H34", class: `path ${name}` }, swatch);
    label.append(box, swatch, title);
    section.querySelector(".choices").append(label);
    box.addEventListener("change", show);
    boxes[name] = box;
  }

  const line = (points) => `M${points.map(([x, y]) => `${x.toFixed(4)} ${(-y).toFixed(4)}`).join("L")}`;
  const ellipse = (parent, [mean, std], name) =>
    element("ellipse", { cx: mean[0], cy: -mean[1], rx: std[0], ry: std[1], class: name }, parent);

  function show() {
    const f = Number(slider.value);
    const chosen = Object.keys(NAMES).filter((name) => boxes[name].checked);
    slider.setAttribute("aria-valuetext", `f = ${f.toFixed(2)}`);
    section.querySelector(".f").value = f.toFixed(2);

    plane.replaceChildren();
    element("path", { d: "M-3.2 0H3.2M0 -2.6V2.6", class: "axis" }, plane);
    for (const name of chosen) {
      for (const part of [0.25, 0.5, 0.75]) ellipse(plane, gaussianAt(name, part), `trail ${name}`);
      element("path", { d: line(FRACTIONS.map((part) => gaussianAt(name, part)[0])), class: `path ${name}` }, plane);
    }
    for (const name of chosen) {
      ellipse(plane, gaussianAt(name, f), `now ${name}`);
      const [x, y] = gaussianAt(name, f)[0];
      element("circle", { cx: x, cy: -y, r: 0.055, class: `dot ${name}` }, plane);
    }
    for (const [which, { mean, std }] of Object.entries(ends)) {
      ellipse(plane, [mean, std], "end");
      handle(plane, which, mean, 0.085);
      element("text", { x: mean[0] + 0.13, y: -mean[1] + 0.24, class: "mark" }, plane).textContent = which;
    }

    simplex.replaceChildren();
    // Its base lies at the bottom: y grows upwards.
    const drawn = element("g", { transform: "translate(0 1.559)" }, simplex);
    element("path", { d: `${line(CORNERS)}Z`, class: "axis" }, drawn);
    CORNERS.forEach(([x, y], k) => {
      const place = { x: x * 1.08 - 0.035, y: -y * 1.045 + (y ? -0.02 : 0.13), class: "mark" };
      element("text", place, drawn).textContent = LETTERS[k];
    });
    const onClasses = chosen.filter((name) => categorical[name]);
    for (const name of onClasses) {
      const at = (part) => onSimplex(categorical[name](ends.prior.classes, ends.target.classes, part));
      element("path", { d: line(FRACTIONS.map(at)), class: `path ${name}` }, drawn);
      const [x, y] = at(f);
      element("circle", { cx: x, cy: -y, r: 0.035, class: `dot ${name}` }, drawn);
    }
    for (const [which, { classes }] of Object.entries(ends)) {
      const [x, y] = onSimplex(classes);
      handle(drawn, which, [x, y], 0.035);
      const left = which === "prior";
      const place = { x: left ? x - 0.06 : x + 0.06, y: -y + 0.035, "text-anchor": left ? "end" : "start", class: "mark" };
      element("text", place, drawn).textContent = which;
    }
    describe(chosen, onClasses, f);
  }

  function handle(parent, which, [x, y], r) {
    // Around what is seen, as much again for fingers.
    element("circle", { cx: x, cy: -y, r: 2.5 * r, class: "grip", "data-end": which }, parent);
    element("circle", { cx: x, cy: -y, r, class: "handle", "data-end": which }, parent);
  }

  function describe(chosen, onClasses, f) {
    const row = (cells) => {
      const made = document.createElement("tr");
      cells.forEach((text, k) => {
        const cell = Object.assign(document.createElement(k ? "td" : "th"), { textContent: text });
        if (!k) cell.scope = "row";
        made.append(cell);
      });
      return made;
    };
    section.querySelector("#gaussians tbody").replaceChildren(
      ...chosen.map((name) => row([NAMES[name], ...gaussianAt(name, f).map(fixed)])),
    );
    section.querySelector("#classes tbody").replaceChildren(
      ...onClasses.map((name) => row([NAMES[name], fixed(categorical[name](ends.prior.classes, ends.target.classes, f))])),
    );
    plane.setAttribute("aria-label", `Gaussians from prior to target by ${chosen.map((n) => NAMES[n]).join(", ") || "nothing"}; the table says where`);
    simplex.setAttribute("aria-label", `Categories from prior to target by ${onClasses.map((n) => NAMES[n]).join(", ") || "nothing"}; the table says where`);
  }

  // The ends, by sliders and by dragging.
  const sliders = [];
  const box = section.querySelector(".ends");
  const add = (which, text, list, k, min, max) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "range", min, max, step: 0.01 });
    const value = document.createElement("output");
    label.append(`${which}: ${text}`, input, value);
    box.append(label);
    const read = () => {
      input.value = list[k];
      value.value = list[k].toFixed(2);
    };
    input.addEventListener("input", () => {
      list[k] = Number(input.value);
      if (list === ends[which].classes) rest(list, k);
      sliders.forEach((other) => other());
      show();
    });
    sliders.push(read);
    read();
  };
  for (const [which, { mean, std, classes }] of Object.entries(ends)) {
    ["mean across", "mean up"].forEach((text, k) => add(which, text, mean, k, -2.4, 2.4));
    ["spread across", "spread up"].forEach((text, k) => add(which, text, std, k, 0.1, 1.2));
    LETTERS.forEach((text, k) => add(which, text, classes, k, 0.01, 0.98));
  }

  /** Let the other probabilities share what one leaves. */
  function rest(list, k) {
    const others = list.reduce((sum, value, j) => (j === k ? sum : sum + value), 0);
    list.forEach((value, j) => {
      if (j !== k) list[j] = Math.max(0.01, (value / others) * (1 - list[k]));
    });
    const total = list.reduce((a, b) => a + b);
    list.forEach((value, j) => (list[j] = value / total));
  }

  for (const [svg, move] of [[plane, onPlane], [simplex, inside]]) {
    let held = null;
    svg.addEventListener("pointerdown", (event) => {
      held = event.target.dataset.end ?? null;
      if (held) svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!held) return;
      const view = svg.viewBox.baseVal;
      const shape = svg.getBoundingClientRect();
      const x = view.x + ((event.clientX - shape.left) / shape.width) * view.width;
      const y = view.y + ((event.clientY - shape.top) / shape.height) * view.height;
      move(ends[held], x, y);
      sliders.forEach((read) => read());
      show();
    });
    for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => (held = null));
  }

  function onPlane(end, x, y) {
    end.mean[0] = Math.min(2.4, Math.max(-2.4, x));
    end.mean[1] = Math.min(2.4, Math.max(-2.4, -y));
  }

  function inside(end, x, y) {
    const up = (1.559 - y) / CORNERS[2][1];
    const across = (x / 0.9 + 1 - up) / 2;
    [1 - up - across, across, up].forEach((value, k) => (end.classes[k] = Math.max(0.01, value)));
    const total = end.classes.reduce((a, b) => a + b);
    end.classes.forEach((value, k) => (end.classes[k] = value / total));
  }

  slider.addEventListener("input", show);
  play(section, () => [0, 1, 0.01], 16);
  show();
}
