// SPDX-License-Identifier: Apache-2.0
// The volumes of the page: from the text they are embedded as to images of NiiVue.
"use strict";

const pageData = JSON.parse(document.getElementById("page-data").textContent);

/** The bytes of base64 text. */
function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** The inverse of `pack` of embedding.py: gunzip, join the low and high bytes, sum along y, then along x. */
async function unpack(id, [nx, ny, nz]) {
  const element = document.getElementById(`volume-${id}`);
  const packed = bytesOf(element.textContent.trim());
  element.remove();
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = nx * ny * nz;
  const values = new Int16Array(count);
  for (let i = 0; i < count; i++) values[i] = planes[i] | (planes[count + i] << 8);
  for (let z = 0; z < nz; z++) {
    const start = z * nx * ny;
    for (let i = start + nx; i < start + nx * ny; i++) values[i] += values[i - nx];
  }
  for (let row = 0; row < ny * nz; row++) {
    for (let i = row * nx + 1; i < (row + 1) * nx; i++) values[i] += values[i - 1];
  }
  return values;
}

/** The voxels of the CT, and of the true CT where there is one. */
async function unpackAll() {
  const { ct, truth } = pageData.volumes;
  return { ct: await unpack("ct", ct.shape), truth: truth && (await unpack("truth", truth.shape)) };
}

/** An image of NiiVue: whole steps behind a NIfTI header that says how large a step is. */
function toImage(header, values, name, { colormap = "gray", opacity = 1, low, high }) {
  const bytes = new Uint8Array(header.length + values.byteLength);
  bytes.set(header);
  bytes.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), header.length);
  return niivue.NVImage.new(bytes.buffer, `${name}.nii`, colormap, opacity, null, low, high);
}

/** The header of a grid with cells of 2³ voxels: half as many, twice as large, centred between their voxels. */
function halfHeader(header, size) {
  const half = header.slice();
  const view = new DataView(half.buffer);
  for (let axis = 0; axis < 3; axis++) {
    view.setInt16(42 + 2 * axis, size[axis], true);
    view.setFloat32(80 + 4 * axis, 2 * view.getFloat32(80 + 4 * axis, true), true);
  }
  view.setInt16(252, 0, true); // the sform alone, because the qform's offsets would be those of the full grid
  for (let row = 0; row < 3; row++) {
    let shift = 0;
    for (let column = 0; column < 3; column++) {
      const at = 280 + 16 * row + 4 * column;
      const step = view.getFloat32(at, true);
      shift += step / 2;
      view.setFloat32(at, 2 * step, true);
    }
    const at = 292 + 16 * row;
    view.setFloat32(at, view.getFloat32(at, true) + shift, true);
  }
  return half;
}

/** The mean of every 2³ voxels: a rendering of the full grid would be too slow without a graphics card. */
function halve(values, [nx, ny, nz]) {
  const size = [nx >> 1, ny >> 1, nz >> 1];
  const small = new Int16Array(size[0] * size[1] * size[2]);
  const area = nx * ny;
  let out = 0;
  for (let z = 0; z < size[2]; z++) {
    for (let y = 0; y < size[1]; y++) {
      let i = 2 * (z * area + y * nx);
      for (let x = 0; x < size[0]; x++, i += 2) {
        const near = values[i] + values[i + 1] + values[i + nx] + values[i + nx + 1];
        const far = values[i + area] + values[i + area + 1] + values[i + area + nx] + values[i + area + nx + 1];
        small[out++] = (near + far) / 8;
      }
    }
  }
  return { values: small, size };
}

/** From where to where bones are drawn [HU]: the densest twentieth of the body, so that soft reconstructions show theirs, too. */
function boneRange(values, step) {
  const counts = new Uint32Array(4096);
  let body = 0;
  for (const value of values) {
    const hu = value * step;
    if (hu > -500) { counts[Math.min(4095, Math.round(hu + 500))]++; body++; }
  }
  const quantile = (share) => {
    let seen = 0, bin = 0;
    while (bin < 4095 && (seen += counts[bin]) < share * body) bin++;
    return bin - 500;
  };
  const low = Math.max(100, quantile(0.95));
  return [low, Math.max(low + 150, quantile(0.998))];
}
