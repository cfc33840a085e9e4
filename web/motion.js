// Motion transfer as in mrfomm/reenactment/motion/transfer.py, and poses between the recorded ones of a turning head.

/** @param {ArrayLike<number>} value @returns {number[][]} */
const pairs = (value) => Array.from({ length: value.length / 2 }, (_, i) => [value[2 * i], value[2 * i + 1]]);

/** @param {number[]} a @param {number[]} b @param {number[]} c */
const cross = (a, b, c) => (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);

/** One side of the convex hull of points that are sorted along it. @param {number[][]} points */
function chain(points) {
  const found = [points[0]];
  for (const point of points.slice(1)) {
    while (found.length > 1 && cross(found[found.length - 2], found[found.length - 1], point) <= 0) found.pop();
    found.push(point);
  }
  return found.slice(0, -1);
}

/** The area of the convex hull of points. @param {ArrayLike<number>} value */
export function hullArea(value) {
  const points = pairs(value).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const hull = [...chain(points), ...chain(points.reverse())];
  return hull.reduce((sum, a, i) => sum + cross([0, 0], a, hull[(i + 1) % hull.length]), 0) / 2;
}

/** Points centred and scaled to a hull of area 1, for comparing poses. @param {ArrayLike<number>} value */
export function normalisedPoints(value) {
  const points = pairs(value);
  const centre = [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
  const scale = Math.sqrt(Math.max(hullArea(value), 1e-12));
  return points.flatMap(([x, y]) => [(x - centre[0]) / scale, (y - centre[1]) / scale]);
}

/** The driving pose and the reference that are closest. @param {Pose[]} references @param {Pose[]} driving */
export function findStart(references, driving) {
  const [ours, theirs] = [references, driving].map((poses) => poses.map(({ value }) => normalisedPoints(value)));
  const pairings = theirs.flatMap((other, frame) =>
    ours.map((points, anchor) => ({ frame, anchor, distance: points.reduce((sum, x, i) => sum + (x - other[i]) ** 2, 0) })),
  );
  return pairings.reduce((best, each) => (each.distance < best.distance ? each : best));
}

/** Products a b^-1 c of 2x2 matrices. @param {Float32Array} a @param {Float32Array} b @param {Float32Array} c */
function transfer(a, b, c) {
  const product = new Float32Array(a.length);
  for (let i = 0; i < a.length; i += 4) {
    const [p, q, r, s] = b.subarray(i, i + 4);
    const determinant = p * s - q * r;
    if (!(Math.abs(determinant) > 0)) throw new Error("Motion can't start from this pose: start it anew.");
    for (const row of [i, i + 2]) {
      const [x, y] = [(a[row] * s - a[row + 1] * r) / determinant, (a[row + 1] * p - a[row] * q) / determinant];
      product.set([x * c[i] + y * c[i + 2], x * c[i + 1] + y * c[i + 3]], row);
    }
  }
  return product;
}

/**
 * The motion since an initial pose, given to an anchor's keypoints: p = p_a + p_d - p_d0, J = J_d J_d0^-1 J_a.
 * @param {Pose} anchor @param {Pose} driving @param {Pose} initial @returns {Pose}
 */
export const relativeMotion = (anchor, driving, initial) => ({
  value: anchor.value.map((each, i) => each + driving.value[i] - initial.value[i]),
  jacobian: transfer(driving.jacobian, initial.jacobian, anchor.jacobian),
});

/** The recorded pose at an angle, between two. @param {Recording} recording @param {number} angle @returns {Pose} */
function poseAt({ angles, value, jacobian }, angle) {
  const i = Math.max(1, angles.findIndex((each, j) => each >= angle || j === angles.length - 1));
  const share = Math.min(1, Math.max(0, (angle - angles[i - 1]) / (angles[i] - angles[i - 1])));
  /** @param {number[][]} numbers */
  const mixed = (numbers) => Float32Array.from(numbers[i], (each, j) => share * each + (1 - share) * numbers[i - 1][j]);
  return { value: mixed(value), jacobian: mixed(jacobian) };
}

/** The recorded head's pose at angles in degrees. @param {Model["turn"]} turn @param {number[]} angles yaw, pitch, roll */
export function turned(turn, [yaw, pitch, roll]) {
  const tilted = relativeMotion(poseAt(turn.yaw, yaw), poseAt(turn.pitch, pitch), poseAt(turn.pitch, 0));
  return relativeMotion(tilted, poseAt(turn.roll, roll), poseAt(turn.roll, 0));
}
