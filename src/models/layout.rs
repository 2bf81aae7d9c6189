//! Layout of a network's tensors in its parameter vector and in its file, and limits on their sizes.

use crate::error::{Error, Result};
use crate::io::model_file::{Data, Tensor};
use crate::nn::tape::Weight;
use crate::nn::Real;
use crate::rng::Stream;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Largest sizes of a network in a file, so that a damaged file cannot ask for more memory than there is.
pub const MOST_ATOMS: usize = 512;
pub const LARGEST_SIZE: usize = 4096;
pub const MOST_LAYERS: usize = 256;

/// Checks (name, value, limit) of each size. Errors name a size that is zero or beyond its limit.
pub fn check_sizes(sizes: &[(&str, usize, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size, most)| *size == 0 || size > most) {
        Some((name, size, most)) => {
            Err(Error::invalid(format!("{name} = {size} is out of range: must be 1 to {most}")))
        }
        None => Ok(()),
    }
}

/// Checks (name, value) of lengths and other scales. Errors name one that is not positive and finite.
pub fn check_positive(scales: &[(&str, f64)]) -> Result<()> {
    match scales.iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
        Some((name, value)) => Err(Error::invalid(format!("{name} must be positive and finite, not {value}"))),
        None => Ok(()),
    }
}

/// Checks the set features of each atom. Errors name an atom with a feature out of range or set twice.
pub fn check_features(features: &[Vec<usize>], n_features: usize) -> Result<()> {
    for (atom, set) in features.iter().enumerate() {
        if let Some(i) = set.iter().find(|&&i| i >= n_features) {
            return Err(Error::invalid(format!(
                "atom {}: feature {i} is out of range for {n_features} features",
                atom + 1
            )));
        }
        if let Some(i) = (1..set.len()).find(|&i| set[..i].contains(&set[i])) {
            return Err(Error::invalid(format!("atom {}: feature {} is set twice", atom + 1, set[i])));
        }
    }
    Ok(())
}

/// Names, shapes and positions of a network's tensors in its flat parameter vector.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    tensors: Vec<Place>,
    end: usize,
}

#[derive(Clone)]
struct Place {
    name: String,
    shape: Vec<usize>,
    at: usize,
    /// For each element its index in the file's tensor, where the two orders differ.
    order: Option<Arc<dyn Fn(usize) -> usize + Send + Sync>>,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} at {}", self.name, self.shape, self.at)
    }
}

impl Place {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// For each element its index in the parameter vector and in the file's tensor.
    fn elements(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.len()).map(|i| (self.at + i, self.order.as_ref().map_or(i, |order| order(i))))
    }
}

impl Layout {
    /// Appends a tensor and returns its offset in the parameter vector.
    pub fn tensor(&mut self, name: impl Into<String>, shape: &[usize]) -> usize {
        let at = self.end;
        self.tensors.push(Place { name: name.into(), shape: shape.to_vec(), at, order: None });
        self.end += shape.iter().product::<usize>();
        at
    }

    /// Stores the tensor at `at` in another order than in the file: its element i is the file's element `order(i)`.
    pub fn reorder(&mut self, at: usize, order: impl Fn(usize) -> usize + Send + Sync + 'static) {
        // search from the back: it is one of the last
        if let Some(place) = self.tensors.iter_mut().rfind(|place| place.at == at) {
            place.order = Some(Arc::new(order));
        }
    }

    /// Appends `name.weight` `[out][in]` and `name.bias`.
    pub fn linear(&mut self, name: &str, n_in: usize, n_out: usize) -> Weight {
        let at = self.tensor(format!("{name}.weight"), &[n_out, n_in]);
        Weight::new(at, n_in, n_out).with_bias(self.tensor(format!("{name}.bias"), &[n_out]))
    }

    /// As [`Layout::linear`], with the weights `[in][out]` in the parameter vector, which products read faster.
    pub fn transposed_linear(&mut self, name: &str, n_in: usize, n_out: usize) -> Weight {
        let weight = self.transposed_matrix(name, n_in, n_out);
        weight.with_bias(self.tensor(format!("{name}.bias"), &[n_out]))
    }

    /// Appends `name.weight` without a bias, `[in][out]` in the parameter vector.
    pub fn transposed_matrix(&mut self, name: &str, n_in: usize, n_out: usize) -> Weight {
        let at = self.tensor(format!("{name}.weight"), &[n_out, n_in]);
        self.reorder(at, move |i| i % n_out * n_in + i / n_out);
        Weight::transposed(at, n_in, n_out)
    }

    /// Number of parameters.
    pub fn n_parameters(&self) -> usize {
        self.end
    }

    /// Name, shape and offset of each tensor.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize], usize)> {
        self.tensors.iter().map(|place| (place.name.as_str(), place.shape.as_slice(), place.at))
    }

    /// Reads the parameters from a file's tensors. Errors name a tensor that is missing, has another shape, holds NaN,
    /// or does not belong.
    pub fn read<R: Real>(&self, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<R>> {
        let mut pairs = Vec::with_capacity(self.tensors.len());
        for place in &self.tensors {
            let Place { name, shape, .. } = place;
            let tensor = tensors.get(name).ok_or_else(|| Error::invalid(format!("tensor {name} is missing")))?;
            if tensor.shape != *shape {
                let found = &tensor.shape;
                return Err(Error::invalid(format!("tensor {name} has shape {found:?}, expected {shape:?}")));
            }
            if let Some(i) = tensor.data.iter().position(|v| !v.is_finite()) {
                return Err(Error::invalid(format!("tensor {name} contains {} at position {i}", tensor.data[i])));
            }
            pairs.push((place, &tensor.data));
        }
        let own: HashSet<&str> = self.tensors.iter().map(|place| place.name.as_str()).collect();
        if let Some(name) = tensors.keys().find(|name| !own.contains(name.as_str())) {
            return Err(Error::invalid(format!("tensor {name} is not part of the model")));
        }
        // the file holds all tensors, so their memory may be allocated
        let mut parameters = vec![R::default(); self.end];
        for (place, data) in pairs {
            place.elements().for_each(|(i, k)| parameters[i] = R::from_f64(data[k]));
        }
        Ok(parameters)
    }

    /// Parameters as tensors for a file, in f32 unless the network is f64.
    pub fn write<R: Real>(&self, parameters: &[R]) -> BTreeMap<String, (Vec<usize>, Data)> {
        let data = |values: Vec<f64>| match R::NAME {
            "f64" => Data::F64(values),
            _ => Data::F32(values.into_iter().map(|v| v as f32).collect()),
        };
        let tensor = |place: &Place| {
            let mut values = vec![0.0; place.len()];
            place.elements().for_each(|(i, k)| values[k] = parameters[i].to_f64());
            (place.name.clone(), (place.shape.clone(), data(values)))
        };
        self.tensors.iter().map(tensor).collect()
    }

    /// Random weights with PyTorch's initialisation of linear layers: uniform in ±1/√inputs, where inputs is the last
    /// dimension of a matrix; its bias has the same range. `special` gives the tensors that start otherwise.
    pub fn initialise<R: Real>(
        &self,
        stream: &mut Stream,
        special: impl Fn(&str, &[usize]) -> Option<Start>,
    ) -> Vec<R> {
        let mut parameters = vec![R::default(); self.end];
        let mut bound = 1.0;
        for (name, shape, at) in self.tensors() {
            if let [.., n_in] = shape[1.min(shape.len())..] {
                bound = 1.0 / (n_in as f64).sqrt();
            }
            let start = special(name, shape).unwrap_or(Start::Within(bound));
            for p in &mut parameters[at..at + shape.iter().product::<usize>()] {
                *p = R::from_f64(match start {
                    Start::At(value) => value,
                    Start::Within(bound) => bound * (2.0 * stream.uniform() - 1.0),
                });
            }
        }
        parameters
    }
}

/// Initial value of a parameter.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    At(f64),
    /// Uniform in ± this value.
    Within(f64),
}
