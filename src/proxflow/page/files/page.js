// The sections of the page: what is asked of the worker, and what is shown of its answers.
import { paint, Pad, repaint } from "./pictures.js";
import { paths } from "./paths.js";

const SIZE = 28 * 28;
const still = matchMedia("(prefers-reduced-motion: reduce)");
const narrow = matchMedia("(max-width: 44rem)");
/** How many of a row of pictures stand side by side. */
const across = (number) => (narrow.matches ? number / 2 : number);
const section = (id) => document.getElementById(id);

// Colours ---------------------------------------------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
const scheme = section("scheme");
let pad;

function colour(isDark) {
  document.documentElement.dataset.scheme = isDark ? "dark" : "light";
  scheme.setAttribute("aria-pressed", String(isDark));
  repaint();
  pad?.show();
}

dark.addEventListener("change", () => colour(dark.matches));
scheme.addEventListener("click", () => colour(document.documentElement.dataset.scheme !== "dark"));
colour(dark.matches);

// The worker --------------------------------------------------------------------------------------------------------------

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let last = 0;
let lost = null; // why there is no worker

/** Ask for samples; `onStep` is called with each evaluation. The promise holds all of them, or null if a newer request came. */
function ask(name, request, onStep = () => {}) {
  const id = ++last;
  for (const [other, held] of waiting) {
    if (held.name === name) {
      waiting.delete(other);
      held.resolve(null);
    }
  }
  const steps = [];
  if (lost) return Promise.reject(lost);
  return new Promise((resolve, reject) => {
    waiting.set(id, { name, steps, onStep, resolve, reject });
    worker.postMessage({ id, section: name, request });
  });
}

worker.onmessage = ({ data: { id, step, done, error } }) => {
  const held = waiting.get(id);
  if (!held) return;
  if (step) {
    held.steps.push(step);
    held.onStep(step, held.steps);
    return;
  }
  waiting.delete(id);
  if (done) held.resolve(held.steps);
  else held.reject(new Error(error));
};
worker.onerror = (event) => {
  lost = new Error(event.message || "the script that runs networks could not be loaded");
  for (const { reject } of waiting.values()) reject(lost);
  waiting.clear();
};

// Controls ----------------------------------------------------------------------------------------------------------------

/** The values of a form's fields by name, numbers where they are, kept within their limits. */
function read(form) {
  const found = {};
  for (const field of form.elements) {
    if (!field.name) continue;
    if (field.type === "number") field.value = Math.min(field.max, Math.max(field.min, Math.round(Number(field.value) || 0)));
    found[field.name] = ["range", "number"].includes(field.type) ? Number(field.value) : field.value;
  }
  return found;
}

/** Show the values of sliders beside them, and call `act` when the form is sent or changed. */
function controls(part, act) {
  const form = part.querySelector("form");
  for (const output of form.querySelectorAll("output")) {
    const range = output.previousElementSibling;
    const tell = () => (output.value = range.value);
    range.addEventListener("input", tell);
    tell();
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
  form.addEventListener("change", act);
  const again = form.querySelector(".again");
  again?.addEventListener("click", () => {
    form.elements.seed.value = Math.floor(Math.random() * 1000000);
    act();
  });
  return form;
}

/** Let the button run through the slider; `range` gives first, last and step. */
function play(part, range, wait) {
  const [button, slider] = [part.querySelector(".play"), part.querySelector(".at")];
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    const [first, end, step] = range();
    if (Number(slider.value) >= end) slider.value = first;
    button.textContent = "Pause";
    // Whoever asked for less motion sees the way in a few still pictures.
    const [stride, pause] = still.matches ? [Math.max(step, (end - first) / 6), 900] : [step, wait];
    timer = setInterval(() => {
      slider.value = Math.min(end, Number(slider.value) + stride);
      slider.dispatchEvent(new Event("input"));
      if (Number(slider.value) >= end) stop();
    }, pause);
  });
  slider.addEventListener("pointerdown", stop);
  return stop;
}

/** Run what a section does when it comes into view, and once. */
function whenSeen(part, act) {
  const watch = new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting) return;
    watch.disconnect();
    act();
  }, { rootMargin: "100px" });
  watch.observe(part);
}

/** Run an act and say how it went in the section's status. */
async function telling(part, said, act) {
  const status = part.querySelector(".status");
  part.setAttribute("aria-busy", "true");
  const begun = performance.now();
  try {
    const found = await act();
    if (found === null) return;
    status.textContent = `${said()} in ${((performance.now() - begun) / 1000).toFixed(1)} s.`;
  } catch (error) {
    status.textContent = `This could not be drawn: ${error.message}`;
  }
  part.removeAttribute("aria-busy");
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const many = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

// Draw --------------------------------------------------------------------------------------------------------------------

function drawing() {
  const part = section("draw");
  const [beliefs, targets, changes] = part.querySelectorAll("canvas");
  const slider = part.querySelector(".at");
  let steps = [];
  const stop = play(part, () => [1, steps.length, 1], 160);

  function show() {
    const k = Number(slider.value) - 1;
    const step = steps[k];
    if (!step) return;
    const next = steps[k + 1]?.belief.mean ?? step.target;
    const columns = Math.sqrt(step.target.length / SIZE);
    paint(beliefs, step.belief.mean, columns);
    paint(targets, step.target, columns);
    paint(changes, next.map((value, i) => value - step.belief.mean[i]), columns, { signed: true });
    const where = `evaluation ${k + 1} of ${steps.length}: t = ${step.t.toFixed(2)}, ${percent(step.taken)} of the way, σ = ${step.belief.std.toFixed(2)}`;
    const go = k + 1 < steps.length ? `the step goes ${percent(step.fraction)} of what is left` : "this target is the sample";
    slider.setAttribute("aria-valuetext", where);
    section("draw-at").textContent = `${where[0].toUpperCase()}${where.slice(1)}; ${go}.`;
    const pictures = many(columns ** 2, "digit");
    beliefs.setAttribute("aria-label", `Beliefs of ${pictures} at ${where}`);
    targets.setAttribute("aria-label", `Targets of ${pictures} at ${where}`);
    changes.setAttribute("aria-label", `Steps of ${pictures} at ${where}`);
  }

  function run() {
    stop();
    const { model, sampler, nfe, number, seed } = read(form);
    const request = { model, sampler, nfe, number: Number(number), seed };
    slider.max = nfe;
    const follow = (step, all) => {
      steps = all;
      if (still.matches && all.length < nfe) return;
      slider.value = all.length;
      show();
    };
    telling(part, () => `Drew ${many(request.number, "digit")} with ${many(nfe, "evaluation")} of ${model}`, () => ask("draw", request, follow));
  }

  const form = controls(part, run);
  slider.addEventListener("input", show);
  run();
}

// GPFN and BFN ------------------------------------------------------------------------------------------------------------

function comparing() {
  const part = section("compare");
  const figures = [...part.querySelectorAll("figure")];
  const ways = [
    { flow: "gpfn", sampler: "deterministic" },
    { flow: "bfn", sampler: "deterministic" },
    { flow: "bfn", sampler: "stochastic" },
  ];
  const words = ["GPFN", "BFN without noise", "BFN with noise"];
  const slider = part.querySelector(".at");
  const box = part.querySelector("[name=targets]");
  let runs = [];
  const stop = play(part, () => [1, Number(slider.max), 1], 160);

  function show() {
    const k = Number(slider.value) - 1;
    slider.setAttribute("aria-valuetext", `evaluation ${k + 1} of ${slider.max}`);
    runs.forEach((steps, i) => {
      const step = steps[Math.min(k, steps.length - 1)];
      if (!step) return;
      const canvas = figures[i].querySelector("canvas");
      paint(canvas, box.checked ? step.target : step.belief.mean, across(8));
      figures[i].querySelector(".said").textContent = `· ${percent(step.taken)} of the way, σ = ${step.belief.std.toFixed(2)}`;
      canvas.setAttribute("aria-label", `${words[i]}: ${box.checked ? "targets" : "beliefs"} of 8 digits at evaluation ${k + 1}`);
    });
  }

  function run() {
    stop();
    const { nfe, seed } = read(form);
    slider.max = slider.value = nfe;
    const drawAll = async () => {
      runs = [];
      for (const way of ways) {
        const own = runs.push([]) - 1;
        const steps = await ask("compare", { ...way, model: "mnist", nfe, number: 8, seed }, (step, all) => {
          runs[own] = all;
          if (!still.matches || all.length === nfe) show();
        });
        if (steps === null) return null;
      }
      return runs;
    };
    telling(part, () => `Drew 8 digits in each of three ways, with ${many(nfe, "evaluation")} each,`, drawAll);
  }

  const form = controls(part, run);
  slider.addEventListener("input", show);
  box.addEventListener("change", show);
  whenSeen(part, run);
}

// Class and guidance --------------------------------------------------------------------------------------------------------

function guiding() {
  const part = section("guide");
  const [plain, led] = part.querySelectorAll("canvas");

  function run() {
    const { class: asked, weight, nfe, seed } = read(form);
    part.querySelector(".weight").textContent = weight;
    const labels = Array.from({ length: 10 }, (_, k) => (asked === "each" ? k : asked === "none" ? -1 : Number(asked)));
    const of = asked === "each" ? "of each class" : asked === "none" ? "of no class" : `of the class ${asked}`;
    const request = { model: "mnist-classes", sampler: "deterministic", nfe, number: 10, seed, labels };
    const drawAll = async () => {
      for (const [canvas, own] of [[plain, 1], [led, weight]]) {
        const steps = await ask("guide", { ...request, weight: own }, (step, all) => {
          if (!still.matches || all.length === nfe) paint(canvas, step.target, across(10));
        });
        if (steps === null) return null;
        canvas.setAttribute("aria-label", `Ten digits ${of} at weight ${own}`);
      }
      return true;
    };
    telling(part, () => `Drew ten digits ${of} at the weights 1 and ${weight}, with ${many(nfe, "step")} each,`, drawAll);
  }

  const form = controls(part, run);
  whenSeen(part, run);
}

// Half a digit --------------------------------------------------------------------------------------------------------------

function restoring() {
  const part = section("restore");
  const completions = part.querySelector(".views canvas");
  const status = part.querySelector(".status");
  let seed = 3;

  function run() {
    const { half, nfe, noise } = read(form);
    pad.half = half;
    pad.show();
    const observation = { known: pad.known, values: Float32Array.from(pad.values), noise };
    const request = { model: "mnist", sampler: "renewed", nfe, number: 8, seed: 0, observation };
    const draw = async () => {
      const steps = await ask("restore", request, (step, all) => {
        if (!still.matches || all.length === nfe) paint(completions, step.target, 4);
      });
      completions.setAttribute("aria-label", `Eight completions of the ${half} half that is known`);
      return steps;
    };
    telling(part, () => `Drew eight completions of the ${half} half, with ${many(nfe, "evaluation")},`, draw);
  }

  async function example() {
    try {
      const steps = await ask("example", { model: "mnist", sampler: "multistep2", nfe: 10, number: 1, seed: seed++ });
      if (!steps) return; // a newer one was asked for
      pad.values.set(steps.at(-1).target);
    } catch {
      // to complete what is drawn fails likewise, and says why
    }
    run();
  }

  pad = new Pad(section("pad"), run, (where) => (status.textContent = where));
  const form = controls(part, run);
  form.querySelector(".example").addEventListener("click", example);
  form.querySelector(".clear").addEventListener("click", () => {
    pad.values.fill(-1);
    pad.show();
    status.textContent = "Cleared. Draw the half that is known.";
  });
  whenSeen(part, example);
}

drawing();
comparing();
guiding();
restoring();
paths(section("paths"), play);
