"""This release without slmctl: a text -> its label, and the probabilities that `slmctl serve` gives, to 1e-6.

    pip install numpy onnxruntime tokenizers      # numpy alone where there is no encoder.onnx
    python answer.py "my parcel is late"          # or lines on standard input; or: from answer import answer
"""  # SPDX-License-Identifier: Apache-2.0
import json, math, pathlib, re, sys, numpy as np

HERE = pathlib.Path(__file__).resolve().parent
task = json.loads((HERE / "task.json").read_bytes())
policy = json.loads((HERE / "policy.json").read_bytes()) if (HERE / "policy.json").exists() else None
stored = dict(np.load(HERE / "sum.npz"))  # labels, two linear models, and in `sum` the weights of both
_, of_encoder, of_words = stored["sum"]
if of_encoder:
    import onnxruntime, tokenizers
    encoder = onnxruntime.InferenceSession(HERE / "encoder.onnx", providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_file(str(HERE / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # `[SEP]` in a text is text

def answer(text: str) -> dict:
    """The `label`, all `labels` with their probabilities and, by a policy, `p_correct` and whether it is `kept`."""
    text, total = text.encode(errors="replace").decode(), 0  # half a surrogate pair is no character
    if task.get("clean") or task.get("replace"):
        from cleaning import Replacement, clean  # in this folder
        text, _ = clean(text, tuple(task.get("clean", ())), tuple(Replacement(**r) for r in task.get("replace", ())))
    if of_words:
        evidence = by_words(text)  # what speaks for each label by itself
        total += of_words * np.maximum(evidence, math.log(1e-6))  # neither model overrules the other for good
    if of_encoder:
        ids = np.array([tokenizer.encode(text[: 1 << 16]).ids])  # of a longer text its beginning
        (vectors,) = encoder.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        evidence = (stored["weights"] @ vectors[0] + stored["bias"]).astype(float)
        total += of_encoder * np.maximum(evidence - np.logaddexp.reduce(evidence), math.log(1e-6))
    known, names = dict(zip(stored["labels"], zip(total, evidence))), task["labels"]
    scores = np.array([known.get(name, [min(total)])[0] for name in names])
    shares = np.exp(scores - np.logaddexp.reduce(scores))
    labels = {names[k]: float(f"{shares[k]:.6g}") for k in np.argsort(-shares, kind="stable")}
    return {"label": next(iter(labels)), "labels": labels} | (judged(labels, known) if policy else {})

def judged(labels: dict, known: dict) -> dict:
    (best, p), scope = next(iter(labels.items())), policy["out_of_scope"]
    signals = {"odds": math.log(max(p, 1e-7) / max(1 - p, 1e-7)), "evidence": round(known.get(best, (0, 0))[1], 6)}
    signals["out_of_scope"] = math.log(max(dict(list(labels.items())[:5]).get(scope, 0), 1e-4))
    score = policy["bias"] + math.fsum(weight * signals[name] for name, weight in policy["weights"].items())
    p_correct = min(float(np.interp(score, *zip(*policy["knots"]))), 0.05 ** (1 / policy["figures"]["rows"]))
    return {"p_correct": round(p_correct, 4), "kept": float(f"{score:.12g}") >= policy["threshold"] and best != scope}

def by_words(text: str) -> np.ndarray:
    """The log probabilities by logistic regression on TF-IDF of words, word pairs and parts of words."""
    words, padded = re.findall(r"\w+", text.lower()), [f" {word} " for word in text.lower().split()]
    features = {"words": words + [f"{one} {two}" for one, two in zip(words, words[1:])]}
    features["runs"] = [word[k : k + n] for word in padded for n in range(2, 6) for k in range(len(word) - n + 1)]
    scores, start = stored["intercept"], 0
    for name in (name for name in features if f"{name}_places" in stored):
        counts = np.bincount(np.fromiter(map(place, features[name]), int), minlength=1 << 18)[stored[f"{name}_places"]]
        used = np.flatnonzero(counts)
        values = (1 + np.log(counts[used])) * stored[f"{name}_idf"][used]
        scores = scores + stored["coef"][:, start + used] @ (values / np.linalg.norm(values))
        start += len(counts)
    if len(scores) > 1:
        return scores - np.logaddexp.reduce(scores)
    share = 1 / (1 + np.exp(-scores[0].astype(np.float32)))  # of two labels, the weights of the second are stored
    return np.log(np.maximum([1 - share, share], 1e-12))

def place(feature: str, places: int = 1 << 18, mask: int = (1 << 32) - 1) -> int:
    """The size of the MurmurHash3 (32 bits with a sign, seed 0), modulo the places."""
    data, h = feature.encode(), 0
    for start in range(0, len(data), 4):
        k = int.from_bytes(data[start : start + 4], "little") * 0xCC9E2D51 & mask
        h ^= (k << 15 | k >> 17) * 0x1B873593 & mask
        if len(data) >= start + 4:
            h = (h << 13 | h >> 19) * 5 + 0xE6546B64 & mask
    h ^= len(data)
    for shift, factor in (16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1):
        h = (h ^ h >> shift) * factor & mask
    return min(h, mask + 1 - h) % places

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # a file more in this folder would be none of the release
    for line in sys.argv[1:] or open(0, encoding="utf-8", errors="replace"):
        print(json.dumps(answer(line.rstrip("\n"))), flush=True)
