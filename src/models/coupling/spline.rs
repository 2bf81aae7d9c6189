//! Monotone rational-quadratic spline (Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019, eqs.
//! 4–8).
//!
//! The analytic direction y = f(x) is the density direction x → z of a coupling; sampling solves the quadratic.

/// Smallest bin width and height (as a fraction of the interval) and smallest slope.
pub const MIN_BIN: f64 = 1e-3;
pub const MIN_SLOPE: f64 = 1e-3;

/// One bin: left knot (x, y), width, height, and the slopes at both knots.
#[derive(Clone, Copy, Debug)]
pub struct Bin {
    pub x: f64,
    pub width: f64,
    pub y: f64,
    pub height: f64,
    pub left: f64,
    pub right: f64,
}

/// Cotangents of a bin's six parameters and of the argument.
#[derive(Clone, Copy, Debug, Default)]
pub struct BinVjp {
    pub argument: f64,
    pub x: f64,
    pub width: f64,
    pub y: f64,
    pub height: f64,
    pub left: f64,
    pub right: f64,
}

impl Bin {
    /// y = f(x) and ln f′(x).
    pub fn analytic(&self, x: f64) -> (f64, f64) {
        let theta = (x - self.x) / self.width;
        let s = self.height / self.width;
        let t1 = theta * (1.0 - theta);
        let denominator = s + (self.left + self.right - 2.0 * s) * t1;
        let y = self.y + self.height * (s * theta * theta + self.left * t1) / denominator;
        (y, self.log_slope(theta, s, t1, denominator))
    }

    /// x = f⁻¹(y) and ln f′(x).
    pub fn root(&self, y: f64) -> (f64, f64) {
        let s = self.height / self.width;
        let rise = y - self.y;
        let bend = self.left + self.right - 2.0 * s;
        let a = rise * bend + self.height * (s - self.left);
        let b = self.height * self.left - rise * bend;
        let c = -s * rise;
        let discriminant = (b * b - 4.0 * a * c).max(0.0);
        let theta = (2.0 * c / (-b - discriminant.sqrt())).clamp(0.0, 1.0);
        let t1 = theta * (1.0 - theta);
        (theta * self.width + self.x, self.log_slope(theta, s, t1, s + bend * t1))
    }

    fn log_slope(&self, theta: f64, s: f64, t1: f64, denominator: f64) -> f64 {
        let u = 1.0 - theta;
        let top = s * s * (self.right * theta * theta + 2.0 * s * t1 + self.left * u * u);
        (top / (denominator * denominator)).ln()
    }

    /// Cotangents at the point x, from those of y = f(x; bin) and of ln f′(x; bin).
    pub fn vjp(&self, x: f64, g_y: f64, g_log_slope: f64) -> BinVjp {
        let theta = (x - self.x) / self.width;
        let (s, u) = (self.height / self.width, 1.0 - theta);
        let t1 = theta * u;
        let bend = self.left + self.right - 2.0 * s;
        let denominator = s + bend * t1;
        let fraction = (s * theta * theta + self.left * t1) / denominator;
        let b = self.right * theta * theta + 2.0 * s * t1 + self.left * u * u;

        let g_fraction = g_y * self.height;
        let g_numerator = g_fraction / denominator;
        let g_denominator = -g_fraction * fraction / denominator - 2.0 * g_log_slope / denominator;
        let g_b = g_log_slope / b;
        let g_t1 = g_numerator * self.left + g_denominator * bend + 2.0 * s * g_b;
        let g_s =
            2.0 * g_log_slope / s + g_numerator * theta * theta + g_denominator * (1.0 - 2.0 * t1) + g_b * 2.0 * t1;
        let g_theta = g_numerator * 2.0 * s * theta
            + g_b * 2.0 * (self.right * theta - self.left * u)
            + g_t1 * (1.0 - 2.0 * theta);
        BinVjp {
            argument: g_theta / self.width,
            x: -g_theta / self.width,
            width: -(g_s * s + g_theta * theta) / self.width,
            y: g_y,
            height: g_y * fraction + g_s / self.width,
            left: (g_numerator + g_denominator) * t1 + g_b * u * u,
            right: g_denominator * t1 + g_b * theta * theta,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIN: Bin = Bin { x: 0.2, width: 0.3, y: -0.1, height: 0.5, left: 0.7, right: 2.1 };

    #[test]
    fn root_inverts_and_the_slope_is_the_derivative() {
        for i in 0..=20 {
            let x = BIN.x + BIN.width * f64::from(i) / 20.0;
            let (y, log_slope) = BIN.analytic(x);
            let (back, log_slope_back) = BIN.root(y);
            assert!((x - back).abs() < 1e-14 && (log_slope - log_slope_back).abs() < 1e-12);
            let h = 1e-6;
            let d = (BIN.analytic(x + h).0 - BIN.analytic(x - h).0) / (2.0 * h);
            assert!((log_slope.exp() - d).abs() < 1e-8);
        }
    }

    #[test]
    fn cotangents_match_differences() {
        let (x, g_y, g_l) = (0.31, 0.8, -1.3);
        let value = |bin: &Bin, x: f64| {
            let (y, log_slope) = bin.analytic(x);
            g_y * y + g_l * log_slope
        };
        let vjp = BIN.vjp(x, g_y, g_l);
        let h = 1e-6;
        type Field = fn(&mut Bin) -> &mut f64;
        let fields: [(f64, Field); 6] = [
            (vjp.x, |b| &mut b.x),
            (vjp.width, |b| &mut b.width),
            (vjp.y, |b| &mut b.y),
            (vjp.height, |b| &mut b.height),
            (vjp.left, |b| &mut b.left),
            (vjp.right, |b| &mut b.right),
        ];
        for (found, field) in fields {
            let (mut up, mut down) = (BIN, BIN);
            *field(&mut up) += h;
            *field(&mut down) -= h;
            let d = (value(&up, x) - value(&down, x)) / (2.0 * h);
            assert!((found - d).abs() < 1e-7, "{found} {d}");
        }
        let d = (value(&BIN, x + h) - value(&BIN, x - h)) / (2.0 * h);
        assert!((vjp.argument - d).abs() < 1e-7);
    }
}
