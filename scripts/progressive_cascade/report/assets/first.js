// SPDX-License-Identifier: Apache-2.0
// The first picture: the middle slices and the densest points, drawn by the processor while the viewer starts.
"use strict";

/** A picture of `width` by `height` points, whose HU at (column, row) is `at(column, row)`. */
function grey(width, height, at, [low, high]) {
  const picture = new ImageData(width, height);
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++, i += 4) {
      const tone = (255 * (at(column, row) - low)) / (high - low);
      picture.data[i] = picture.data[i + 1] = picture.data[i + 2] = tone;
      picture.data[i + 3] = 255;
    }
  }
  return createImageBitmap(picture);
}

/** Draws the slices through the middle where the viewer will, the patient's right on the left, the nose on the left. */
async function paintFirst(canvas, values, [nx, ny, nz], step, window) {
  const [x, y, z] = [nx >> 1, ny >> 1, nz >> 1], hu = (i, j, k) => values[i + nx * (j + ny * k)] * step;
  const planes = [
    [await grey(nx, nz, (c, r) => hu(nx - 1 - c, y, nz - 1 - r), window), 0, 0],
    [await grey(ny, nz, (c, r) => hu(x, ny - 1 - c, nz - 1 - r), window), 1, 0],
    [await grey(nx, ny, (c, r) => hu(nx - 1 - c, ny - 1 - r, z), window), 0, 1],
  ];
  canvas.width = canvas.height = 2 * Math.max(nx, ny, nz);
  const pen = canvas.getContext("2d"), half = canvas.width / 2;
  for (const [plane, column, row] of planes) {
    pen.drawImage(plane, half * column + (half - plane.width) / 2, half * row + (half - plane.height) / 2);
  }
}

/** Draws the densest point behind each other from front to back: what stands for the rendering until it is asked for. */
async function paintDensest(canvas, values, [nx, ny, nz], step) {
  const densest = new Int16Array(nx * nz).fill(-32768);
  for (let z = 0, i = 0; z < nz; z++) {
    for (let y = 0; y < ny; y++) {
      for (let x = 0, at = z * nx; x < nx; x++, at++, i++) if (values[i] > densest[at]) densest[at] = values[i];
    }
  }
  const at = (c, r) => densest[nx - 1 - c + nx * (nz - 1 - r)] * step;
  canvas.width = nx;
  canvas.height = nz;
  canvas.getContext("2d").drawImage(await grey(nx, nz, at, [-100, 700]), 0, 0);
}
