//! Model file: tensor names, reading and writing.
//!
//! | tensor | shape | layer |
//! |---|---|---|
//! | `layers.N.network.L.weight`, `.bias` | `[out, in]`, `[out]` | spline |
//! | `layers.N.shift.L.…`, `layers.N.scale.L.…`, `layers.N.log_alpha` | as above, `[1]` | affine (scale only with two networks) |
//! | `layers.N.shift` | `[coordinates]` | circular shift |

use super::layers::Layer;
use super::CouplingFlow;
use crate::error::Result;
use crate::io::model_file::{serialize, Data, ModelFile};
use crate::io::write_atomically;
use crate::nn::{Mlp, Real};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Name, shape and offset in the parameter vector of a tensor.
struct Entry {
    name: String,
    shape: Vec<usize>,
    place: Range<usize>,
}

fn network(prefix: &str, mlp: &Mlp, entries: &mut Vec<Entry>) {
    for (l, linear) in mlp.layers.iter().enumerate() {
        let (n_out, n_in) = (linear.n_out, linear.n_in);
        let weight = format!("{prefix}.{l}.weight");
        entries.push(Entry { name: weight, shape: vec![n_out, n_in], place: linear.weight() });
        entries.push(Entry { name: format!("{prefix}.{l}.bias"), shape: vec![n_out], place: linear.bias() });
    }
}

fn layout(layers: &[Layer]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let name = |part: &str| format!("layers.{i}.{part}");
        match layer {
            Layer::Spline(layer) => network(&name("network"), &layer.conditioner.mlp, &mut entries),
            Layer::Affine(layer) => {
                network(&name("shift"), &layer.shift.mlp, &mut entries);
                if let Some(scale) = &layer.scale {
                    network(&name("scale"), &scale.mlp, &mut entries);
                }
                let place = layer.log_alpha..layer.log_alpha + 1;
                entries.push(Entry { name: name("log_alpha"), shape: vec![1], place });
            }
            Layer::Elementwise(layer) => {
                if let Some(place) = layer.parameters() {
                    entries.push(Entry { name: name("shift"), shape: vec![place.len()], place });
                }
            }
            Layer::Whiten(_) => {}
        }
    }
    entries
}

impl<R: Real> CouplingFlow<R> {
    pub(super) fn read_parameters(&mut self, file: &ModelFile) -> Result<()> {
        let entries = layout(&self.layers);
        file.only(&entries.iter().map(|e| e.name.clone()).collect::<Vec<_>>())?;
        for entry in entries {
            let values = file.tensor(&entry.name, &entry.shape)?;
            self.parameters_mut()[entry.place].iter_mut().zip(values).for_each(|(to, &from)| *to = R::from_f64(from));
        }
        Ok(())
    }

    /// Bytes of the model file; parameters are stored in the network's type. Errors: those of serialisation.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let store = |values: &[R]| match R::NAME {
            "f32" => Data::F32(values.iter().map(|v| v.to_f64() as f32).collect()),
            _ => Data::F64(values.iter().map(|v| v.to_f64()).collect()),
        };
        let tensors: BTreeMap<_, _> = layout(&self.layers)
            .into_iter()
            .map(|entry| (entry.name, (entry.shape, store(&self.parameters[entry.place]))))
            .collect();
        serialize(&self.card, &tensors)
    }

    /// Writes the model file; an existing file is replaced only by a complete one. Errors: those of writing.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), &self.to_bytes()?)
    }
}
