// This release without slmctl, in Node 20 or later: a text -> its label, and the probabilities of `slmctl serve`.
//
//     npm install --ignore-scripts onnxruntime-node @huggingface/tokenizers   // neither where there is no encoder.onnx
//     node answer.mjs "my parcel is late"   // or lines on standard input; or: import { answer } from "./answer.mjs"
//
// SPDX-License-Identifier: Apache-2.0
import fs from "node:fs";
import readline from "node:readline";
import { fileURLToPath } from "node:url";
import { inflateRawSync } from "node:zlib";

const read = (name) => fs.readFileSync(new URL(name, import.meta.url));
const task = JSON.parse(read("task.json"));
const policy = fs.existsSync(new URL("policy.json", import.meta.url)) ? JSON.parse(read("policy.json")) : null;
const stored = npz(read("sum.npz")); // labels, two linear models, and in `sum` the weights of both
const [, ofEncoder, ofWords] = stored.sum.values;
const PLACES = 1 << 18, LEAST = Math.log(1e-6);
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/u; // that of Python

let ort, session, tokenizer, written;
if (ofEncoder) {
  ort = (await import("onnxruntime-node")).default;
  session = await ort.InferenceSession.create(fileURLToPath(new URL("encoder.onnx", import.meta.url)));
  written = JSON.parse(read("tokenizer.json"));
  const { Tokenizer } = await import("@huggingface/tokenizers");
  tokenizer = new Tokenizer({ ...written, added_tokens: [] }, {}); // without these `[SEP]` in a text is text
}

// The label, all labels with their probabilities and, by a policy, p_correct and whether the answer is kept.
export async function answer(text) {
  text = text.replace(/\p{Surrogate}/gu, "?"); // half a surrogate pair is no character
  const words = ofWords ? byWords(text) : null, vector = ofEncoder ? await encoded(text) : null;
  const evidence = vector ? times(stored.weights, vector).map((sum, k) => sum + stored.bias.values[k]) : words;
  const members = [[ofWords, words], [ofEncoder, vector && normalised(evidence)]].filter(([weight]) => weight);
  const known = new Map(stored.labels.values.map((label, k) => [label, {
    total: members.reduce((sum, [weight, logprobs]) => sum + weight * Math.max(logprobs[k], LEAST), 0),
    evidence: evidence[k],
  }]));
  const least = Math.min(...[...known.values()].map(({ total }) => total));
  const shares = normalised(task.labels.map((label) => known.get(label)?.total ?? least)).map(Math.exp);
  const order = [...shares.keys()].sort((a, b) => shares[b] - shares[a]), label = task.labels[order[0]];
  const listed = order.map((k) => [task.labels[k], Number(shares[k].toPrecision(6))]);
  const said = policy ? judged(listed, known.get(label)?.evidence ?? 0) : {};
  return { label, labels: Object.fromEntries(listed), ...said };
}

function judged(listed, evidence) {
  const [best, sure] = listed[0], scope = policy.out_of_scope, knots = policy.knots;
  const share = listed.slice(0, 5).find(([label]) => label === scope)?.[1] ?? 0;
  const odds = Math.log(Math.max(sure, 1e-7) / Math.max(1 - sure, 1e-7));
  const signals = { odds, evidence: Number(evidence.toFixed(6)), out_of_scope: Math.log(Math.max(share, 1e-4)) };
  const terms = Object.entries(policy.weights).map(([name, weight]) => weight * signals[name]);
  const score = Number(terms.reduce((sum, term) => sum + term, policy.bias).toPrecision(12));
  const at = knots.findIndex(([x]) => x > score);
  let p = knots.at(at)[1]; // that of the first knot below it, of the last one beyond
  if (at > 0) {
    const [[x0, p0], [x1, p1]] = [knots[at - 1], knots[at]];
    p = p0 + ((p1 - p0) * (score - x0)) / (x1 - x0);
  }
  const pCorrect = Math.min(p, 0.05 ** (1 / policy.figures.rows));
  return { p_correct: Number(pCorrect.toFixed(4)), kept: score >= policy.threshold && best !== scope };
}

// The vector of a text by the sentence encoder, of length 1.
async function encoded(text) {
  const chars = Array.from(text).slice(0, 1 << 16); // of a longer text its beginning; lower case letter by letter
  const lower = written.normalizer?.lowercase ? chars.map((char) => char.toLowerCase()) : chars;
  const all = tokenizer.encode(lower.join("")).ids, longest = written.truncation?.max_length ?? Infinity;
  const ids = all.length > longest ? [...all.slice(0, longest - 1), all.at(-1)] : all;
  const tensor = (numbers) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, ids.length]);
  const inputs = { input_ids: tensor(ids), attention_mask: tensor(ids.map(() => 1)) };
  return (await session.run(inputs, ["sentence_embedding"])).sentence_embedding.data;
}

// The log probabilities by logistic regression on TF-IDF of words, word pairs and parts of words.
function byWords(text) {
  const lower = text.toLowerCase(), words = lower.match(/[\p{L}\p{N}_]+/gu) ?? [], runs = [];
  for (const word of lower.split(SPACE).filter(Boolean)) {
    const padded = [" ", ...word, " "];
    for (let n = 2; n <= 5; n++)
      for (let k = 0; k + n <= padded.length; k++) runs.push(padded.slice(k, k + n).join(""));
  }
  const pairs = words.slice(1).map((word, k) => `${words[k]} ${word}`), rows = stored.coef.shape[0];
  const scores = [...stored.intercept.values];
  let start = 0;
  for (const [name, features] of [["words", words.concat(pairs)], ["runs", runs]]) {
    const places = stored[`${name}_places`]?.values ?? [], counts = new Uint32Array(PLACES);
    for (const feature of features) counts[place(feature)]++;
    const used = [...places.keys()].filter((k) => counts[places[k]]);
    const values = used.map((k) => (1 + Math.log(counts[places[k]])) * stored[`${name}_idf`].values[k]);
    const length = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
    for (let row = 0; row < rows; row++)
      used.forEach((k, j) => { scores[row] += (cell(stored.coef, row, start + k) * values[j]) / length; });
    start += places.length;
  }
  if (rows > 1) return normalised(scores);
  // of two labels, the weights of the second are stored; 32 bits, as slmctl has them here, are few for 1 - share
  const share = Math.fround(1 / Math.fround(1 + Math.fround(Math.exp(Math.fround(-scores[0])))));
  return [1 - share, share].map((one) => Math.log(Math.max(one, 1e-12)));
}

// The size of the MurmurHash3 (32 bits with a sign, seed 0), modulo PLACES.
function place(feature) {
  const data = Buffer.from(feature);
  let h = 0;
  for (let start = 0; start < data.length; start += 4) {
    let k = 0;
    for (let j = Math.min(3, data.length - 1 - start); j >= 0; j--) k = (k << 8) | data[start + j];
    k = Math.imul(k, 0xcc9e2d51);
    h ^= Math.imul((k << 15) | (k >>> 17), 0x1b873593);
    if (data.length >= start + 4) h = (Math.imul((h << 13) | (h >>> 19), 5) + 0xe6546b64) | 0;
  }
  h ^= data.length;
  for (const [shift, factor] of [[16, 0x85ebca6b], [13, 0xc2b2ae35], [16, 1]]) h = Math.imul(h ^ (h >>> shift), factor);
  return Math.abs(h) % PLACES;
}

function normalised(scores) {
  const top = Math.max(...scores), rest = top + Math.log(scores.reduce((sum, score) => sum + Math.exp(score - top), 0));
  return scores.map((score) => score - rest);
}

function times(table, vector) {
  const product = (_, row) => vector.reduce((sum, x, k) => sum + cell(table, row, k) * x, 0);
  return Array.from({ length: table.shape[0] }, product);
}

// A number of a table, which is stored by rows or by columns.
function cell({ shape: [rows, columns], values, byColumns }, row, column) {
  return values[byColumns ? column * rows + row : row * columns + column];
}

// The arrays of a zip of `.npy` files, by name.
function npz(file) {
  const arrays = {}, end = file.lastIndexOf("PK\x05\x06");
  for (let at = file.readUInt32LE(end + 16), left = file.readUInt16LE(end + 10); left > 0; left--) {
    const [method, size, from] = [file.readUInt16LE(at + 10), file.readUInt32LE(at + 20), file.readUInt32LE(at + 42)];
    const next = at + 46 + file.readUInt16LE(at + 28), name = file.toString("utf8", at + 46, next);
    const data = from + 30 + file.readUInt16LE(from + 26) + file.readUInt16LE(from + 28);
    const raw = file.subarray(data, data + size);
    arrays[name.replace(/\.npy$/, "")] = npy(method ? inflateRawSync(raw) : raw);
    at = next + file.readUInt16LE(at + 30) + file.readUInt16LE(at + 32);
  }
  return arrays;
}

function npy(raw) {
  const start = 10 + raw.readUInt16LE(8), head = raw.toString("latin1", 10, start);
  const [, type, width] = head.match(/'<([a-zA-Z])(\d+)'/), bytes = Uint8Array.from(raw.subarray(start)).buffer;
  const shape = head.match(/\(([^)]*)\)/)[1].split(",").filter((size) => size.trim()).map(Number);
  const byColumns = head.includes("'fortran_order': True");
  const kinds = { f2: Uint16Array, f4: Float32Array, f8: Float64Array, i4: Int32Array, i8: BigInt64Array };
  if (type === "U") {
    const codes = new Uint32Array(bytes), text = (k) => [...codes.subarray(k * width, (k + 1) * width)].filter(Boolean);
    return { shape, values: Array.from({ length: shape[0] }, (_, k) => String.fromCodePoint(...text(k))) };
  }
  const values = new kinds[type + width](bytes);
  return { shape, byColumns, values: type + width === "f2" ? Float32Array.from(values, half) : values };
}

// The number in 16 bits.
function half(bits) {
  const exponent = (bits >> 10) & 31, rest = (bits & 1023) / 1024, sign = bits >> 15 ? -1 : 1;
  return sign * (exponent ? (1 + rest) * 2 ** (exponent - 15) : rest * 2 ** -14);
}

if (process.argv[1] && fs.realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const texts = process.argv.length > 2 ? process.argv.slice(2) : readline.createInterface({ input: process.stdin });
  for await (const text of texts) console.log(JSON.stringify(await answer(text)));
}
