// SPDX-License-Identifier: Apache-2.0
// The slices and the rendering: NiiVue instances that share crosshair, zoom and window.
"use strict";

const MULTIPLANAR = 3, RENDER = 4, GRID = 2;
const DRAG = { crosshair: 8, windowing: 9, pan: 3, measurement: 2 };
const COLORMAPS = {
  sigma: { R: [0, 90, 209, 251, 252], G: [0, 26, 66, 154, 244], B: [0, 124, 111, 6, 160], A: [0, 110, 160, 190, 210], I: [0, 77, 153, 217, 255] },
  error: { R: [155, 47, 18, 12, 107, 224, 255], G: [225, 143, 58, 13, 47, 123, 224], B: [255, 208, 92, 16, 12, 31, 163], A: [255, 255, 255, 255, 255, 255, 255], I: [0, 43, 85, 128, 170, 213, 255] },
  bones: { R: [0, 120, 214, 255], G: [0, 88, 196, 250], B: [0, 70, 165, 240], A: [0, 60, 150, 230], I: [0, 60, 130, 255] },
};
const SLICES = {
  isRadiologicalConvention: true, sagittalNoseLeft: true, dragMode: DRAG.windowing, dragModePrimary: DRAG.crosshair,
  backColor: [0, 0, 0, 1], crosshairColor: [0.43, 0.73, 0.93, 0.85], crosshairWidth: 1, crosshairWidthUnit: "screenPixels",
  crosshairGap: 12, fontColor: [0.87, 0.88, 0.9, 1], fontMinPx: 12, fontSizeScaling: 0.2, measureTextColor: [1, 0.85, 0.5, 1],
  measureLineColor: [1, 0.77, 0.42, 1], rulerColor: [0.87, 0.88, 0.9, 0.9], rulerWidth: 2, isRuler: false, dragAndDropEnabled: false,
  show3Dcrosshair: false, logLevel: "error", loadingText: "", scrollRequiresFocus: false, isSliceMM: false,
  sliceType: MULTIPLANAR, multiplanarLayout: GRID, multiplanarShowRender: 0, touchEventConfig: { singleTouch: DRAG.crosshair, doubleTouch: DRAG.windowing },
};

/** A NiiVue instance on a canvas, with the colours of this page. */
async function instance(id, options) {
  const viewer = new niivue.Niivue({ ...SLICES, ...options });
  for (const [name, colours] of Object.entries(COLORMAPS)) viewer.addColormap(name, colours);
  await viewer.attachToCanvas(document.getElementById(id), false);
  return viewer;
}

/**
 * Lets a NiiVue leave out what its slices do not need. With every window it smooths and differentiates the whole volume,
 * 2 x 256 passes for the light of a rendering: three quarters of all work without a graphics card.
 */
function skipGradients(viewer) {
  const { gl } = viewer, unused = [viewer.blurShader, viewer.sobelFirstOrderShader].map((shader) => shader.program);
  const { useProgram } = gl;
  let skipping = false;
  gl.useProgram = (program) => {
    skipping = unused.includes(program);
    useProgram.call(gl, program);
  };
  for (const [name, answer] of [["drawArrays"], ["framebufferTextureLayer"], ["checkFramebufferStatus", gl.FRAMEBUFFER_COMPLETE]]) {
    const call = gl[name];
    gl[name] = (...what) => (skipping ? answer : call.apply(gl, what));
  }
  return viewer;
}

class Viewer {
  /** Shows what :func:`unpackAll` unpacked. */
  static async open({ ct, truth }, window) {
    const self = new Viewer();
    self.header = bytesOf(pageData.volumes.ct.header);
    self.values = ct;
    self.size = pageData.volumes.ct.shape;
    self.step = pageData.volumes.ct.step;
    const [low, high] = window;
    self.planes = skipGradients(await instance("planes"));
    self.planes.addVolume(await toImage(self.header, self.values, "ct", { low, high }));
    self.slices = [self.planes];
    if (truth) await self.openTruth(truth, low, high);
    for (const viewer of self.slices) {
      viewer.onLocationChange = () => self.follow(viewer);
      viewer.onIntensityChange = () => self.adopt(viewer);
    }
    self.onmove = () => {};
    self.onwindow = () => {};
    self.centre();
    return self;
  }

  async openTruth(values, low, high) {
    this.truthValues = values;
    this.truth = skipGradients(await instance("truth"));
    this.truth.addVolume(await toImage(this.header, this.truthValues, "truth", { low, high }));
    this.slices.push(this.truth);
    this.planes.broadcastTo([this.truth], { "2d": true });
    this.truth.broadcastTo([this.planes], { "2d": true });
  }

  /** Waits until the graphics processor has drawn what it was asked to, without holding up the page. */
  async drawn() {
    for (const { gl } of this.slices) {
      const fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
      gl.flush();
      while (gl.clientWaitSync(fence, 0, 0) === gl.TIMEOUT_EXPIRED) await new Promise((resolve) => setTimeout(resolve, 30));
      gl.deleteSync(fence);
    }
  }

  /** Whether there is no graphics card: a rendering then takes seconds a frame. */
  isSlow() {
    const { gl } = this.planes, names = gl.getExtension("WEBGL_debug_renderer_info");
    return Boolean(names) && /swiftshader|llvmpipe|softpipe|software|basic render/i.test(gl.getParameter(names.UNMASKED_RENDERER_WEBGL));
  }

  /** Adds the rendering, once. */
  openRendering() {
    this.opening = this.opening || this.render();
    return this.opening;
  }

  async render() {
    const small = halve(this.values, this.size);
    const [low, high] = boneRange(small.values, this.step);
    const rendering = await instance("rendering", { sliceType: RENDER, isOrientationTextVisible: true, gradientOpacity: 0 });
    rendering.addVolume(await toImage(halfHeader(this.header, small.size), small.values, "bones", { colormap: "bones", low, high }));
    await rendering.setVolumeRenderIllumination(0.6);
    this.rendering = rendering;
    this.turnTo(200, 8);
    document.querySelector(".corner").classList.add("turning");
  }

  /** Puts the crosshair of every instance to a point [RAS mm]. */
  moveTo(mm) {
    for (const viewer of this.slices) {
      viewer.scene.crosshairPos = viewer.mm2frac(mm);
      viewer.drawScene();
    }
    this.onmove(this.point());
  }

  /** Takes the crosshair over from the instance the user moved it in. */
  follow(source) {
    if (this.following) return;
    this.following = true;
    const mm = this.point(source);
    for (const viewer of this.slices) {
      if (viewer === source) continue;
      viewer.scene.crosshairPos = viewer.mm2frac(mm);
      viewer.drawScene();
    }
    this.onmove(mm);
    this.following = false;
  }

  point(viewer = this.planes) {
    return Array.from(viewer.frac2mm(viewer.scene.crosshairPos)).slice(0, 3);
  }

  voxel() {
    return Array.from(this.planes.frac2vox(this.planes.scene.crosshairPos));
  }

  /** The point in the middle of a voxel [RAS mm]. */
  middle(voxel) {
    return Array.from(this.planes.vox2mm(voxel, this.planes.volumes[0].matRAS)).slice(0, 3);
  }

  centre() {
    this.moveTo(this.middle(this.size.map((count) => count >> 1)));
  }

  /** Goes to a slice of one axis and stays where it is along the others. */
  goTo(axis, index) {
    const voxel = this.voxel();
    voxel[axis] = Math.max(0, Math.min(this.size[axis] - 1, index));
    this.moveTo(this.middle(voxel));
  }

  /** Values at the crosshair [HU]; of the true CT and of sigma where there are any. */
  values_at() {
    const [x, y, z] = this.voxel();
    const at = x + this.size[0] * (y + this.size[1] * z);
    const found = { ct: this.values[at] * this.step };
    if (this.truthValues) found.truth = this.truthValues[at] * this.step;
    if (this.sigma) {
      const [i, j, k] = this.sigma.image.mm2vox(this.point());
      found.sigma = this.sigma.image.getValue(i, j, k);
    }
    return found;
  }

  setWindow(low, high) {
    for (const viewer of this.slices) {
      viewer.volumes[0].cal_min = low;
      viewer.volumes[0].cal_max = high;
      viewer.updateGLVolume();
    }
    this.onwindow(low, high);
  }

  /** Takes the window over from the instance the user changed it in. */
  adopt(source) {
    const { cal_min: low, cal_max: high } = source.volumes[0];
    for (const viewer of this.slices) {
      if (viewer === source || (viewer.volumes[0].cal_min === low && viewer.volumes[0].cal_max === high)) continue;
      viewer.volumes[0].cal_min = low;
      viewer.volumes[0].cal_max = high;
      viewer.updateGLVolume();
    }
    this.onwindow(low, high);
  }

  setDrag(mode) {
    for (const viewer of this.slices) viewer.opts.dragModePrimary = DRAG[mode];
    const touch = { singleTouch: DRAG[mode], doubleTouch: DRAG.windowing };
    for (const viewer of this.slices) viewer.setTouchEventConfig(touch);
  }

  /** Shows all planes, or one of them, or the rendering alone. */
  setView(view) {
    const corner = document.querySelector(".corner");
    corner.hidden = !["all", String(RENDER)].includes(view);
    corner.classList.toggle("whole", view === String(RENDER));
    const type = view === "all" || Number(view) === RENDER ? MULTIPLANAR : Number(view);
    for (const viewer of this.slices) viewer.setSliceType(type);
    if (view === String(RENDER)) this.openRendering();
    if (this.rendering) this.rendering.resizeListener();
  }

  setCrosshair(visible) {
    for (const viewer of this.slices) viewer.setCrosshairWidth(visible ? 1 : 0);
  }

  async setUncertainty(visible) {
    if (!this.sigma) {
      const { header, shape } = pageData.volumes.sigma;
      const values = await unpack("sigma", shape);
      const options = { colormap: "sigma", opacity: 1, low: 0, high: pageData.sigma_max };
      this.sigma = { image: await toImage(bytesOf(header), values, "sigma", options) };
      this.planes.addVolume(this.sigma.image);
    }
    this.planes.setOpacity(1, visible ? 1 : 0);
    this.onmove(this.point());
  }

  async setDifference(visible) {
    if (!this.error) {
      const values = this.values.map((value, i) => value - this.truthValues[i]);
      const limit = pageData.difference_limit;
      this.error = await toImage(this.header, values, "difference", { colormap: "error", low: -limit, high: limit });
      this.truth.addVolume(this.error);
    }
    this.truth.setOpacity(1, visible ? 1 : 0);
  }

  turnTo(azimuth, elevation) {
    this.rendering.setRenderAzimuthElevation(azimuth, elevation);
  }

  turn(azimuth, elevation) {
    if (!this.rendering) return;
    const { renderAzimuth, renderElevation } = this.rendering.scene;
    this.turnTo(renderAzimuth + azimuth, renderElevation + elevation);
  }

  reset() {
    for (const viewer of this.slices) {
      viewer.clearAllMeasurements();
      viewer.scene.pan2Dxyzmm = new Float32Array([0, 0, 0, 1]);
    }
    if (this.rendering) this.turnTo(200, 8);
    this.centre();
  }
}
