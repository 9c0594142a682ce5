// The mathematics of the page: the library's noise, proximal steps and samplers, number for number.
// Tests compare all of it with Python. Names in brackets say where the same stands there.

// Noise ---------------------------------------------------------------------------------------------------------------

const GOLDEN = 0x9e3779b97f4a7c15n;
const FIRST = [0xbf58476d, 0x1ce4e5b9];
const SECOND = [0x94d049bb, 0x133111eb];

/** The high half of a product of two unsigned 32-bit numbers. */
function high(a, b) {
  const [a0, a1, b0, b1] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const [mid, other] = [a0 * b1, a1 * b0];
  const carry = ((a0 * b0) >>> 16) + (mid & 0xffff) + (other & 0xffff);
  return (a1 * b1 + (mid >>> 16) + (other >>> 16) + (carry >>> 16)) >>> 0;
}

/** SplitMix64's bijection of a word of two halves, into `out` at `place`: its low half, then its high half. */
function mix(hi, lo, out, place) {
  const fold = (shift) => {
    const low = (lo >>> shift) | (hi << (32 - shift));
    hi ^= hi >>> shift;
    lo ^= low;
  };
  const times = ([hi2, lo2]) => {
    hi = Math.imul(hi, lo2) + Math.imul(lo, hi2) + high(lo >>> 0, lo2);
    lo = Math.imul(lo, lo2);
  };
  fold(30);
  times(FIRST);
  fold(27);
  times(SECOND);
  fold(31);
  out[place] = lo;
  out[place + 1] = hi;
}

const halves = (word) => [Number(BigInt.asUintN(32, word >> 32n)), Number(BigInt.asUintN(32, word))];

/** One stream of noise for each sample, a function of seed and index alone [random.SampleStreams]. */
export class Streams {
  constructor(seed, number, first = 0) {
    const mixed = (word) => {
      const out = new Uint32Array(2);
      mix(...halves(BigInt.asUintN(64, word)), out, 0);
      return (BigInt(out[1]) << 32n) | BigInt(out[0]);
    };
    const place = (k) => BigInt(k) * GOLDEN + BigInt(seed);
    const rows = Array.from({ length: number }, (_, i) => 2 * (first + i));
    this.starts = rows.map((row) => mixed(place(row + 1)));
    this.steps = rows.map((row) => mixed(place(row + 2)) | 1n);
    this.draws = 0n;
  }

  /** Standard normal numbers, `size` for each sample, by Box–Muller: half of the words give radii, half angles. */
  normal(size) {
    const pairs = Math.ceil(size / 2);
    const words = new Int32Array(2 * pairs);
    const found = new Float32Array(this.starts.length * size);
    const scale = 2 ** -32 * (1 - 2 ** -24);
    const turn = Math.fround(Math.PI * 2 ** -31);
    this.starts.forEach((start, row) => {
      let [hi, lo] = halves(BigInt.asUintN(64, start + this.draws * GOLDEN));
      const [stepHi, stepLo] = halves(this.steps[row]);
      for (let j = 0; j < pairs; j++) {
        mix(hi, lo, words, 2 * j);
        const sum = lo + stepLo;
        hi = (hi + stepHi + (sum > 0xffffffff ? 1 : 0)) >>> 0;
        lo = sum >>> 0;
      }
      for (let j = 0; j < pairs; j++) {
        const uniform = Math.fround(Math.fround(Math.fround(words[j]) * scale) + 0.5);
        const radius = Math.sqrt(-2 * Math.log(uniform));
        const angle = Math.fround(Math.fround(words[pairs + j]) * turn);
        found[row * size + j] = radius * Math.cos(angle);
        if (pairs + j < size) found[row * size + pairs + j] = radius * Math.sin(angle);
      }
    });
    this.draws += 1n;
    return found;
  }
}

// Proximal steps: argmin over r of (1 − f) D(r, p) + f D(r, q) ------------------------------------------------------------

const lerp = (a, b, f) => a + f * (b - a);

/** Steps of one coordinate of a Gaussian, (mean, std) → [mean, std] [divergences, on DiagonalGaussian]. */
export const gaussian = {
  w2: (m, s, m1, s1, f) => [lerp(m, m1, f), lerp(s, s1, f)],
  kl: (m, s, m1, s1, f) => {
    const [keep, take] = [(1 - f) / s ** 2, f / s1 ** 2];
    return [(keep * m + take * m1) / (keep + take), 1 / Math.sqrt(keep + take)];
  },
  "reverse-kl": (m, s, m1, s1, f) => [
    lerp(m, m1, f),
    Math.sqrt((1 - f) * s ** 2 + f * s1 ** 2 + f * (1 - f) * (m1 - m) ** 2),
  ],
  "fisher-rao": (m, s, m1, s1, f) => {
    const distance = 2 * Math.asinh(Math.sqrt(((m - m1) ** 2 / 2 + (s - s1) ** 2) / (4 * s * s1)));
    const ratio = (part) => (distance < 1e-6 ? part : Math.sinh(part * distance) / Math.sinh(distance));
    const [keep, take] = [ratio(1 - f) / s, ratio(f) / s1];
    return [(keep * m + take * m1) / (keep + take), 1 / (keep + take)];
  },
};

const normalised = (weights) => {
  const total = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / total);
};

/** Steps of the probabilities of classes [divergences, on Categorical]. */
export const categorical = {
  kl: (p, q, f) => normalised(p.map((value, k) => value ** (1 - f) * q[k] ** f)),
  "reverse-kl": (p, q, f) => p.map((value, k) => lerp(value, q[k], f)),
  "fisher-rao": (p, q, f) => {
    const chord = Math.hypot(...p.map((value, k) => Math.sqrt(value) - Math.sqrt(q[k])));
    const angle = 2 * Math.asin(Math.min(1, chord / 2));
    const ratio = (part) => (angle < 1e-6 ? part : Math.sin(part * angle) / Math.sin(angle));
    return p.map((value, k) => (ratio(1 - f) * Math.sqrt(value) + ratio(f) * Math.sqrt(q[k])) ** 2);
  },
};

// Flows of pictures: beliefs are means (number × size) with one standard deviation --------------------------------------------

/** Call `make` for every number of a batch. */
const each = (size, make) => Float32Array.from({ length: size }, (_, i) => make(i));

/** General Proximal Flow Network with Wasserstein-2 and a linear schedule, as the shipped models have [flows.GPFN]. */
export class GPFN {
  constructor(final, targetStd) {
    Object.assign(this, { final, targetStd });
  }

  times(nfe) {
    return Array.from({ length: nfe }, (_, k) => k / nfe);
  }

  begin(streams, size) {
    return { mean: streams.normal(size), std: 1 };
  }

  /** How far along the belief is, τ = a/(a + b) of means a x + b ε. */
  taken(t) {
    return this.final * t;
  }

  /** What the network is asked: here the belief itself. */
  asked(belief, t) {
    return [belief.mean, t];
  }

  fraction(t, s) {
    return (this.taken(s) - this.taken(t)) / (1 - this.taken(t));
  }

  update(belief, target, t, s, noise) {
    const f = this.fraction(t, s);
    const message = noise ? each(target.length, (i) => target[i] + this.targetStd * noise[i]) : target;
    const [, std] = gaussian.w2(0, belief.std, 0, this.targetStd, f);
    return { mean: each(target.length, (i) => lerp(belief.mean[i], message[i], f)), std };
  }
}

/**
 * Bayesian Flow Network of real numbers [flows.BFN], asked of a network that a GPFN trained [predictors.Denoiser]: of noisy data
 * with as much noise both are asked the same. σ₁ is such that both ways end with as much.
 */
export class BFN {
  constructor(final) {
    const ratio = (1 - final) / final;
    Object.assign(this, { final, sigma1: ratio / Math.hypot(1, ratio) });
  }

  times(nfe) {
    return nfe > 1 ? Array.from({ length: nfe }, (_, k) => k / (nfe - 1)) : [0];
  }

  begin(streams, size) {
    return { mean: new Float32Array(streams.starts.length * size), std: 1 };
  }

  coefficients(t) {
    const gamma = -Math.expm1(2 * Math.log(this.sigma1) * t);
    return [gamma, Math.sqrt(gamma * (1 - gamma))];
  }

  taken(t) {
    const [a, b] = this.coefficients(t);
    return a > 0 ? a / (a + b) : 0;
  }

  asked(belief, t) {
    const [a, b] = this.coefficients(t);
    const scale = a > 0 ? 1 / (a + b) : 0;
    return [each(belief.mean.length, (i) => scale * belief.mean[i]), Math.min(1, this.taken(t) / this.final)];
  }

  accuracy(t, s) {
    const rate = -2 * Math.log(this.sigma1);
    return Math.exp(rate * t) * Math.expm1(rate * (s - t));
  }

  fraction(t, s) {
    const alpha = this.accuracy(t, s);
    return alpha / (Math.exp(-2 * Math.log(this.sigma1) * t) + alpha);
  }

  update(belief, target, t, s, noise) {
    const alpha = this.accuracy(t, s);
    const total = belief.std ** -2 + alpha;
    const spread = 1 / Math.sqrt(alpha);
    const message = noise ? each(target.length, (i) => target[i] + spread * noise[i]) : target;
    return { mean: each(target.length, (i) => lerp(belief.mean[i], message[i], alpha / total)), std: total ** -0.5 };
  }
}

// Samplers: (flow, belief, target, t, s, noise, memory) → [belief, memory] ----------------------------------------------------

/** The belief of a GPFN whose mean is given. */
const along = (flow, mean, s) => ({ mean, std: gaussian.w2(0, 1, 0, flow.targetStd, flow.taken(s))[1] });

export const samplers = {
  /** The proximal step toward the target. */
  deterministic: (flow, belief, target, t, s) => [flow.update(belief, target, t, s)],
  /** The proximal step toward a noisy message around it. */
  stochastic: (flow, belief, target, t, s, noise) => [flow.update(belief, target, t, s, noise())],
  /** Fresh noise that keeps the law at each time [samplers.Marginal]. */
  marginal: (flow, belief, target, t, s, noise) => {
    const [tau, to] = [flow.taken(t), flow.taken(s)];
    const ratio = (tau * (1 - to)) / (to * (1 - tau));
    const replaced = Math.max(0, 1 - ratio ** 2);
    const keep = ((1 - to) * Math.sqrt(Math.max(0, 1 - replaced))) / (1 - tau);
    const [take, fresh, xi] = [to - keep * tau, (1 - to) * Math.sqrt(replaced), noise()];
    const mean = each(target.length, (i) => keep * belief.mean[i] + take * target[i] + fresh * xi[i]);
    return [along(flow, mean, s)];
  },
  /** All noise anew, for posteriors [samplers.Renewed]. */
  renewed: (flow, belief, target, t, s, noise) => {
    const [to, xi] = [flow.taken(s), noise()];
    return [along(flow, each(target.length, (i) => to * target[i] + (1 - to) * xi[i]), s)];
  },
  /** Second order from two predictions [samplers.Multistep]. */
  multistep2: (flow, belief, target, t, s, noise, memory) => {
    const [left, to] = [1 - flow.taken(t), 1 - flow.taken(s)];
    let slope = 0;
    if (memory && to > 0) {
      const h = Math.log(left / to);
      slope = (-h / Math.expm1(-h) - 1) / Math.log(memory.left / left);
    }
    const ahead = slope ? each(target.length, (i) => lerp(memory.target[i], target[i], 1 + slope)) : target;
    const mean = each(target.length, (i) => lerp(ahead[i], belief.mean[i], to / left));
    return [along(flow, mean, s), { target, left }];
  },
};

// What predicts -------------------------------------------------------------------------------------------------------

const clipped = (x) => Math.min(1, Math.max(-1, x));

/** Lead a prediction with a class away from that without, at weight w [predictors.Guided, linear, Wasserstein-2]. */
export function guided(predict, weight) {
  if (weight === 1) return predict;
  return async (mean, t, labels) => {
    const none = new Array(labels.length).fill(-1);
    const twice = new Float32Array(2 * mean.length);
    twice.set(mean);
    twice.set(mean, mean.length);
    const both = await predict(twice, t, [...labels, ...none]);
    return each(mean.length, (i) => clipped(lerp(both[mean.length + i], both[i], weight)));
  };
}

/** Refine a target by an observation of some pixels with noise [predictors.Posterior, the method flower, of a Mask]. */
export function observed(target, { known, values, noise }, flow, t) {
  const spread = (tau) => (1 - tau) ** 2 / (tau ** 2 + (1 - tau) ** 2);
  const variance = Math.max(1e-8, spread(flow.taken(t)) - spread(flow.taken(1)));
  const gain = variance / (noise ** 2 + variance);
  return each(target.length, (i) => {
    const pixel = i % known.length;
    return known[pixel] ? lerp(target[i], values[pixel], gain) : target[i];
  });
}

/**
 * Draw, and yield each evaluation: its number, times, fractions, belief and target. The last target is the sample.
 *
 * predict(mean, t, labels) is the network; labels are class numbers, −1 for none.
 */
export async function* draw({ flow, predict, number, size, nfe, sampler, seed, first = 0, labels, observation }) {
  const streams = new Streams(seed, number, first);
  const times = flow.times(nfe);
  const noise = () => streams.normal(size);
  let [belief, memory] = [flow.begin(streams, size), undefined];
  for (let k = 0; k < nfe; k++) {
    const t = times[k];
    let target = await predict(...flow.asked(belief, t), labels);
    if (observation) target = observed(target, observation, flow, t);
    const last = k + 1 === nfe;
    yield { k, t, taken: flow.taken(t), fraction: last ? 1 : flow.fraction(t, times[k + 1]), belief, target };
    if (!last) [belief, memory] = samplers[sampler](flow, belief, target, t, times[k + 1], noise, memory);
  }
}
