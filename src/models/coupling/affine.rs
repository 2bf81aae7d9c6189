//! Affine coupling u′ = eˢ u + t, s = tanh(network) · e^{log α}; optionally volume-preserving (Dinh, Sohl-Dickstein and
//! Bengio, "Density estimation using Real NVP", ICLR 2017; scale bound and mean subtraction as in bgflow).

use super::conditioner::Conditioner;
use super::layers::{Direction, LayerConfig, LayerTape, Rows};
use crate::error::{Error, Result};
use crate::nn::{Parameters, Real};

#[derive(Clone, Debug)]
pub struct AffineCoupling {
    /// Shift t, and also s if there is only one network: outputs [t | s].
    pub shift: Conditioner,
    pub scale: Option<Conditioner>,
    pub(super) transformed: Vec<usize>,
    pub(super) preserve_volume: bool,
    /// Offset of log α in the parameters.
    pub log_alpha: usize,
}

impl AffineCoupling {
    /// Appends the layer's parameters at `*end`. Errors: a malformed configuration.
    pub fn new(config: &LayerConfig, end: &mut usize) -> Result<AffineCoupling> {
        let LayerConfig::Affine { transformed, features, hidden, activation, scale_activation, preserve_volume } =
            config
        else {
            return Err(Error::invalid("not an affine layer"));
        };
        let d = transformed.len();
        let log_alpha = *end;
        *end += 1;
        let (shift, scale) = match scale_activation {
            None => (Conditioner::new(features, hidden, 2 * d, *activation, end)?, None),
            Some(second) => (
                Conditioner::new(features, hidden, d, *activation, end)?,
                Some(Conditioner::new(features, hidden, d, *second, end)?),
            ),
        };
        let transformed = transformed.clone();
        Ok(AffineCoupling { shift, scale, transformed, preserve_volume: *preserve_volume, log_alpha })
    }

    /// Fills `tape.scale[rows][d]` with s and leaves tanh(network) in place of the network's output.
    fn scales<R: Real>(&self, parameters: &Parameters<R>, tape: &mut LayerTape<R>, rows: usize) {
        let d = self.transformed.len();
        let alpha = parameters[self.log_alpha].to_f64().exp();
        tape.scale.resize(rows * d, 0.0);
        for row in 0..rows {
            let raw = match self.scale {
                None => &mut tape.conditioner.output[row * 2 * d + d..][..d],
                Some(_) => &mut tape.second.output[row * d..][..d],
            };
            R::tanh_slice(raw);
            let scale = &mut tape.scale[row * d..][..d];
            scale.iter_mut().zip(raw).for_each(|(s, tanh)| *s = tanh.to_f64() * alpha);
            if self.preserve_volume {
                let mean = scale.iter().sum::<f64>() / d as f64;
                scale.iter_mut().for_each(|s| *s -= mean);
            }
        }
    }

    /// Transforms `rows.u` in place and adds to `log_det`, ln|∂u′/∂u| of the generating direction.
    pub fn apply<R: Real>(
        &self,
        direction: Direction,
        parameters: &Parameters<R>,
        rows: &mut Rows,
        tape: &mut LayerTape<R>,
    ) {
        let (dimension, n, d) = (rows.dimension, rows.log_det.len(), self.transformed.len());
        self.shift.forward(parameters, rows.u, dimension, &mut tape.conditioner);
        if let Some(scale) = &self.scale {
            scale.forward(parameters, rows.u, dimension, &mut tape.second);
        }
        self.scales(parameters, tape, n);
        let stride = self.shift.mlp.n_out();
        tape.kept.resize(n * d, 0.0);
        tape.factor.resize(n * d, 0.0);
        for row in 0..n {
            let shift = &tape.conditioner.output[row * stride..][..d];
            let scale = &tape.scale[row * d..][..d];
            let u = &mut rows.u[row * dimension..][..dimension];
            for (c, &i) in self.transformed.iter().enumerate() {
                let t = shift[c].to_f64();
                // multiply by e^±s, the only exponential in this layer
                let factor = match direction {
                    Direction::Generate => scale[c].exp(),
                    Direction::Encode => (-scale[c]).exp(),
                };
                u[i] = match direction {
                    Direction::Generate => factor * u[i] + t,
                    Direction::Encode => factor * (u[i] - t),
                };
                tape.kept[row * d + c] = u[i];
                tape.factor[row * d + c] = factor;
            }
            rows.log_det[row] += scale.iter().sum::<f64>();
        }
    }

    /// Backward pass; see [`super::layers::Layer::vjp`].
    pub fn vjp<R: Real>(
        &self,
        direction: Direction,
        parameters: &Parameters<R>,
        tape: &mut LayerTape<R>,
        gu: &mut [f64],
        g_log_det: &[f64],
        mut gradient: Option<&mut [R]>,
    ) {
        let (n, d, stride) = (g_log_det.len(), self.transformed.len(), self.shift.mlp.n_out());
        let dimension = gu.len() / n;
        let alpha = parameters[self.log_alpha].to_f64().exp();
        tape.conditioner.g_output.resize(n * stride, R::default());
        tape.second.g_output.resize(if self.scale.is_some() { n * d } else { 0 }, R::default());
        let mut g_log_alpha = 0.0;
        for row in 0..n {
            let (tanh, g_tanh) = match self.scale {
                None => (&tape.conditioner.output[row * stride + d..][..d], None),
                Some(_) => (&tape.second.output[row * d..][..d], Some(&mut tape.second.g_output[row * d..][..d])),
            };
            let scale = &mut tape.scale[row * d..][..d];
            let (g_shift, g_rest) = tape.conditioner.g_output[row * stride..][..stride].split_at_mut(d);
            let g_tanh = g_tanh.unwrap_or(g_rest);
            let shift = &tape.conditioner.output[row * stride..][..d];
            let (kept, factor) = (&tape.kept[row * d..][..d], &tape.factor[row * d..][..d]);
            let gu = &mut gu[row * dimension..][..dimension];
            let mut g_mean = 0.0;
            for (c, &i) in self.transformed.iter().enumerate() {
                let g = gu[i];
                let g_s = match direction {
                    // u′ = eˢu + t, so eˢu = u′ − t
                    Direction::Generate => {
                        g_shift[c] = R::from_f64(g);
                        gu[i] = g * factor[c];
                        g * (kept[c] - shift[c].to_f64())
                    }
                    // u = e⁻ˢ(u′ − t)
                    Direction::Encode => {
                        gu[i] = g * factor[c];
                        g_shift[c] = R::from_f64(-gu[i]);
                        -g * kept[c]
                    }
                } + g_log_det[row];
                scale[c] = g_s; // s itself is not needed any more
                g_mean += g_s / d as f64;
            }
            for c in 0..d {
                let g_s = scale[c] - if self.preserve_volume { g_mean } else { 0.0 };
                let y = tanh[c].to_f64();
                g_log_alpha += g_s * y * alpha;
                g_tanh[c] = R::from_f64(g_s * alpha * (1.0 - y * y));
            }
        }
        if let Some(gradient) = gradient.as_deref_mut() {
            gradient[self.log_alpha] += R::from_f64(g_log_alpha);
        }
        self.shift.vjp(parameters, &mut tape.conditioner, gu, dimension, gradient.as_deref_mut());
        if let Some(scale) = &self.scale {
            scale.vjp(parameters, &mut tape.second, gu, dimension, gradient);
        }
    }
}
