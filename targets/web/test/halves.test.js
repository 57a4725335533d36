/** Numbers in 16 bits. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { halfBits } from "../src/halves.js";

/** What the bits stand for, by the standard's formula. @param {number} bits */
const number = (bits) => {
  const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? Number.NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : (fraction / 1024) * 2 ** -14);
};

test("every half is itself", () => {
  for (let bits = 0; bits < 65536; bits++) {
    if (Number.isNaN(number(bits))) assert.ok(Number.isNaN(number(halfBits(Number.NaN))));
    else assert.equal(halfBits(number(bits)), bits);
  }
});

test("numbers between two halves become the nearer one, of two as near the even one", () => {
  for (let bits = 0; bits < 0x7bff; bits++) {
    const [low, high] = [number(bits), number(bits + 1)];
    const middle = (low + high) / 2;
    assert.equal(halfBits(middle), bits % 2 ? bits + 1 : bits);
    assert.equal(halfBits(Math.fround(middle * (1 + 2 ** -20))), bits + 1);
    assert.equal(halfBits(Math.fround(middle * (1 - 2 ** -20))), bits);
  }
});

test("what is too large is infinite, what is too small is zero", () => {
  assert.deepEqual([65504, 65519, 65520, 1e30, -1e30].map(halfBits), [0x7bff, 0x7bff, 0x7c00, 0x7c00, 0xfc00]);
  assert.deepEqual([2 ** -25, -(2 ** -26), 0].map(halfBits), [0, 0x8000, 0]);
});
