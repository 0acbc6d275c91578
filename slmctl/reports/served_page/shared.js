"use strict";
// What both pages are made of. Every text from a server or a model becomes a text node: nothing here makes markup of it.
const at = (id) => document.getElementById(id);
const fault = at("fault"), told = at("told");

// What a reader sees of a text: no control character, and none that reorders the rest of the line.
const clean = (text) => String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, "");

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.map((child) => (child instanceof Node ? child : clean(child))));
  return element;
}

// A browser rounds integers of so many digits, which numbers of shipments, cards and accounts have.
const rounds = (json) => /\d{16}/.test(json.replace(/"(\\.|[^"\\])*"/g, ""));

const percent = (share) => `${(100 * share).toFixed(1)} %`;

// What a reader is told; any other error is a bug, and goes to the console.
class Fault extends Error {
  constructor(words, status = 0) {
    super(words);
    this.status = status;
  }
}
