//! Pointwise non-linearities.

use super::real::Real;

/// Activation function between two layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    Relu,
    Silu,
    Tanh,
}

impl Activation {
    /// post ← f(pre).
    pub fn forward<R: Real>(self, pre: &[R], post: &mut [R]) {
        match self {
            Activation::Relu => {
                let zero = R::default();
                post.iter_mut().zip(pre).for_each(|(y, &x)| *y = if x < zero { zero } else { x })
            }
            Activation::Silu => R::silu_slice(pre, post),
            Activation::Tanh => {
                post.copy_from_slice(pre);
                R::tanh_slice(post)
            }
        }
    }

    /// gradient ← gradient · f′(pre). The Jacobian is diagonal, so this is both the vjp and the jvp. `post` = f(pre).
    pub fn backward<R: Real>(self, pre: &[R], post: &[R], gradient: &mut [R]) {
        match self {
            Activation::Relu => {
                let zero = R::default();
                gradient.iter_mut().zip(pre).for_each(|(g, &x)| {
                    if x <= zero {
                        *g = zero
                    }
                })
            }
            Activation::Silu => R::silu_backward(pre, gradient),
            Activation::Tanh => {
                let one = R::from_f64(1.0);
                gradient.iter_mut().zip(post).for_each(|(g, &y)| *g *= one - y * y)
            }
        }
    }
}
