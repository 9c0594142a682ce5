// The sections of the page: what is asked of the worker, and what is shown of its answers.
import { outdate, paint, Pad, repaint } from "./pictures.js";
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

/** Wait no longer for what was asked under this name: its promise holds null. */
function drop(name) {
  for (const [other, held] of waiting) {
    if (held.name === name) {
      waiting.delete(other);
      held.resolve(null);
    }
  }
}

/** Ask for samples; `onStep` is called with each evaluation. The promise holds all of them, or null if a newer request came. */
function ask(name, request, onStep = () => {}) {
  drop(name);
  const id = ++last;
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

/** The values of a form's fields by name, numbers where they are. */
function read(form) {
  const found = {};
  for (const field of form.elements) {
    if (!field.name) continue;
    found[field.name] = ["range", "number"].includes(field.type) ? Number(field.value) : field.value;
  }
  return found;
}

/** Show the values of sliders beside them, and call `act` when the form is sent or changed and its seed can be used. */
function controls(part, run) {
  const form = part.querySelector("form");
  const { seed } = form.elements;
  const wrong = form.querySelector(".wrong");
  form.noValidate = true; // what is wrong is said in the page, whichever way it was given
  const act = () => {
    const usable = !seed || (seed.value !== "" && seed.validity.valid);
    seed?.setAttribute("aria-invalid", String(!usable));
    if (wrong) wrong.textContent = usable ? "" : `A seed is a whole number from ${seed.min} to ${seed.max}; until it is one, nothing new is drawn.`;
    if (usable) run();
  };
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
    seed.value = Math.floor(Math.random() * 1000000);
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

/** Say how a section's drawing goes; how far it is stands beside, so that screen readers tell its beginning and its end alone. */
function tell(part, words, far = "") {
  part.querySelector(".status").textContent = words;
  part.querySelector(".far").textContent = far;
}

/** Draw `what` by an act, and say how far it is and how it went; the act calls its argument at each of `total` evaluations. */
async function telling(part, what, total, act, { before = "", note = "" } = {}) {
  outdate(part);
  const far = (done) => `${done} of ${many(total, "evaluation")}`;
  tell(part, `${before}Drawing ${what} …${note}`, far(0));
  const begun = performance.now();
  let done = 0;
  try {
    const found = await act(() => (part.querySelector(".far").textContent = far(++done)));
    if (found === null) return;
    tell(part, `Drew ${what} in ${((performance.now() - begun) / 1000).toFixed(1)} s.${note}`);
  } catch (error) {
    tell(part, `This could not be drawn: ${error.message}`);
  }
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const many = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

// Draw --------------------------------------------------------------------------------------------------------------------

function drawing() {
  const part = section("draw");
  const [beliefs, targets, changes] = part.querySelectorAll("canvas");
  const slider = part.querySelector(".at");
  let [steps, total] = [[], 0];
  /** Of how many evaluations the step is known, too: the next belief shows it, and the last goes to the sample. */
  const known = () => (steps.length < total ? steps.length - 1 : total);
  const stop = play(part, () => [1, known(), 1], 160);

  function show() {
    const k = Math.min(Number(slider.value), known()) - 1;
    const step = steps[k];
    if (!step) return;
    const next = steps[k + 1]?.belief.mean ?? step.target;
    const columns = Math.sqrt(step.target.length / SIZE);
    paint(beliefs, step.belief.mean, columns);
    paint(targets, step.target, columns);
    paint(changes, next.map((value, i) => value - step.belief.mean[i]), columns, { signed: true });
    const where = `evaluation ${k + 1} of ${total}: t = ${step.t.toFixed(2)}, ${percent(step.taken)} of the way, σ = ${step.belief.std.toFixed(2)}`;
    const go = k + 1 < total ? `the step goes ${percent(step.fraction)} of what is left` : "this target is the sample";
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
    [steps, total] = [[], nfe];
    section("draw-at").textContent = "";
    slider.setAttribute("aria-valuetext", "not drawn yet");
    const draw = (count) => ask("draw", request, (step, all) => {
      count();
      steps = all;
      if (known() < 1 || (still.matches && all.length < nfe)) return;
      slider.value = known();
      show();
    });
    telling(part, `${many(request.number, "digit")} with ${many(nfe, "evaluation")} of ${model}`, nfe, draw);
  }

  const form = controls(part, run);
  const { model: choice, nfe: evaluations } = form.elements;
  let former = choice.value;
  // Before the form hears of it: the model for one evaluation begins with one, and the others after it with ten.
  choice.addEventListener("change", () => {
    if ([former, choice.value].includes("mnist-few")) {
      evaluations.value = choice.value === "mnist-few" ? 1 : 10;
      evaluations.dispatchEvent(new Event("input"));
    }
    former = choice.value;
  });
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
      const at = Math.min(k, steps.length - 1);
      const step = steps[at];
      if (!step) return;
      const canvas = figures[i].querySelector("canvas");
      paint(canvas, box.checked ? step.target : step.belief.mean, across(8));
      figures[i].querySelector(".said").textContent = `· ${percent(step.taken)} of the way, σ = ${step.belief.std.toFixed(2)}`;
      canvas.setAttribute("aria-label", `${words[i]}: ${box.checked ? "targets" : "beliefs"} of 8 digits at evaluation ${at + 1}`);
    });
  }

  function run() {
    stop();
    const { nfe, seed } = read(form);
    slider.max = slider.value = nfe;
    const drawAll = async (count) => {
      runs = [];
      for (const way of ways) {
        const own = runs.push([]) - 1;
        const steps = await ask("compare", { ...way, model: "mnist", nfe, number: 8, seed }, (step, all) => {
          count();
          runs[own] = all;
          if (!still.matches || all.length === nfe) show();
        });
        if (steps === null) return null;
      }
      return runs;
    };
    telling(part, `8 digits in each of three ways, with ${many(nfe, "evaluation")} each`, ways.length * nfe, drawAll);
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
    const labels = Array.from({ length: 10 }, (_, k) => (asked === "each" ? k : asked === "none" ? -1 : Number(asked)));
    const of = asked === "each" ? "of each class" : asked === "none" ? "of no class" : `of the class ${asked}`;
    const request = { model: "mnist-classes", sampler: "deterministic", nfe, number: 10, seed, labels };
    const drawAll = async (count) => {
      for (const [canvas, own] of [[plain, 1], [led, weight]]) {
        const steps = await ask("guide", { ...request, weight: own }, (step, all) => {
          count();
          if (still.matches && all.length < nfe) return;
          paint(canvas, step.target, across(10));
          canvas.setAttribute("aria-label", `Ten digits ${of} at weight ${own}`);
          if (canvas === led) part.querySelector(".weight").textContent = weight;
        });
        if (steps === null) return null;
      }
      return true;
    };
    telling(part, `ten digits ${of} at the weights 1 and ${weight}, with ${many(nfe, "evaluation")} each`, 2 * nfe, drawAll);
  }

  const form = controls(part, run);
  whenSeen(part, run);
}

// Half a digit --------------------------------------------------------------------------------------------------------------

function restoring() {
  const part = section("restore");
  const completions = part.querySelector(".views canvas");
  let seed = 3;

  function run(where) {
    drop("example"); // else it would take the place of what has been drawn since
    const { half, nfe, noise } = read(form);
    pad.half = half;
    pad.show();
    const observation = { known: pad.known, values: Float32Array.from(pad.values), noise };
    const request = { model: "mnist", sampler: "renewed", nfe, number: 8, seed: 0, observation };
    const draw = (count) => ask("restore", request, (step, all) => {
      count();
      if (still.matches && all.length < nfe) return;
      paint(completions, step.target, 4);
      completions.setAttribute("aria-label", `Eight completions of the ${half} half that is known`);
    });
    const blank = !pad.known.some((inside, k) => inside && pad.values[k] > 0);
    telling(part, `eight completions of the ${half} half, with ${many(nfe, "evaluation")}`, nfe, draw, {
      before: where ? `${where}. ` : "",
      note: blank ? " That half is blank, and blank is taken as known." : "",
    });
  }

  async function example() {
    drop("restore");
    outdate(part);
    tell(part, "Drawing a digit whose half is known …");
    try {
      const steps = await ask("example", { model: "mnist", sampler: "multistep2", nfe: 10, number: 1, seed: seed++ });
      if (!steps) return; // a newer one was asked for
      pad.values.set(steps.at(-1).target);
    } catch {
      // to complete what is drawn fails likewise, and says why
    }
    run();
  }

  pad = new Pad(section("pad"), run, (where) => (part.querySelector(".status").textContent = where));
  const form = controls(part, () => run());
  form.querySelector(".example").addEventListener("click", example);
  form.querySelector(".clear").addEventListener("click", () => {
    pad.values.fill(-1);
    pad.show();
    drop("example");
    drop("restore");
    outdate(part);
    tell(part, "Cleared. Draw the half that is known; blank is taken as known, too.");
  });
  whenSeen(part, example);
}

drawing();
comparing();
guiding();
restoring();
paths(section("paths"), play);
