//! Placement of one atom from three others, with derivatives.

use super::vector::*;

/// Sine below which an angle, or the angle that defines a torsion's plane, makes a configuration singular.
pub const SINGULAR: f64 = 1e-6;

/// Orthonormal axes at atom j: a = unit(j − k), n = unit((j − k) × (j − l)), m = a × n.
#[derive(Clone, Copy)]
pub struct Axes {
    a: Vec3,
    n: Vec3,
    m: Vec3,
    v1: Vec3,
    v2: Vec3,
    cross_norm: f64,
}

impl Axes {
    pub fn new(xj: Vec3, xk: Vec3, xl: Vec3) -> Axes {
        let (v1, v2) = (sub(xj, xk), sub(xj, xl));
        let w = cross(v1, v2);
        let cross_norm = norm(w);
        let (a, n) = (unit(v1), scale(1.0 / cross_norm, w));
        Axes { a, n, m: cross(a, n), v1, v2, cross_norm }
    }

    pub fn is_singular(&self) -> bool {
        // NaN counts as singular
        let well_defined = self.cross_norm >= SINGULAR * norm(self.v1) * norm(self.v2);
        !well_defined
    }

    pub fn components(&self, r: Vec3) -> Vec3 {
        [dot(r, self.a), dot(r, self.n), dot(r, self.m)]
    }

    pub fn vector(&self, c: Vec3) -> Vec3 {
        add(scale(c[0], self.a), add(scale(c[1], self.n), scale(c[2], self.m)))
    }

    /// Cotangents of atoms j, k, l from those of the axes a, n, m.
    pub fn vjp(&self, [ga, gn, gm]: [Vec3; 3]) -> [Vec3; 3] {
        // m = a × n
        let ga = add(ga, cross(self.n, gm));
        let gn = add(gn, cross(gm, self.a));
        // n = w / |w| with w = v1 × v2
        let gw = scale(1.0 / self.cross_norm, sub(gn, scale(dot(self.n, gn), self.n)));
        let gv2 = cross(gw, self.v1);
        let across = sub(ga, scale(dot(self.a, ga), self.a));
        let gv1 = add(cross(self.v2, gw), scale(1.0 / norm(self.v1), across));
        [add(gv1, gv2), scale(-1.0, gv1), scale(-1.0, gv2)]
    }
}

/// Direction from atom j to the atom being placed: sin θ t − cos θ a with t = cos φ m − sin φ n.
pub struct Placement {
    pub axes: Axes,
    pub theta: (f64, f64),
    pub phi: (f64, f64),
}

/// Cotangents of the inputs of one placement.
pub struct PlacementVjp {
    pub d: f64,
    pub theta: f64,
    pub phi: f64,
    pub axes: [Vec3; 3],
}

impl Placement {
    pub fn t(&self) -> Vec3 {
        let (sin, cos) = self.phi;
        sub(scale(cos, self.axes.m), scale(sin, self.axes.n))
    }

    pub fn direction(&self) -> Vec3 {
        let (sin, cos) = self.theta;
        sub(scale(sin, self.t()), scale(cos, self.axes.a))
    }

    /// Cotangents from that of the placed atom, `g`.
    pub fn vjp(&self, d: f64, g: Vec3) -> PlacementVjp {
        let ((sin_t, cos_t), (sin_p, cos_p)) = (self.theta, self.phi);
        let by_theta = add(scale(cos_t, self.t()), scale(sin_t, self.axes.a));
        let by_phi = add(scale(-sin_p, self.axes.m), scale(-cos_p, self.axes.n));
        PlacementVjp {
            d: dot(g, self.direction()),
            theta: d * dot(g, by_theta),
            phi: d * sin_t * dot(g, by_phi),
            axes: [scale(-d * cos_t, g), scale(-d * sin_t * sin_p, g), scale(d * sin_t * cos_p, g)],
        }
    }
}
