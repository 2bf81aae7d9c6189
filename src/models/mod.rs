//! Generators. One folder per model; [`load`] finds the right one for a file.

pub mod card;
pub mod continuous;
pub mod coupling;
pub mod egnn_flow;
pub mod energy;
pub mod field;
pub mod field_on_device;
pub mod graphormer_ebm;
pub mod gvp_ebm;
pub mod gvp_flow;
pub mod invariant_ebm;
pub mod kept_bonds;
pub mod labels;
pub mod layout;
pub mod mlp_ebm;
pub mod modes;
pub mod network;
pub mod steering;
pub mod tarflow;

pub use card::{ModelCard, ModelConfig, SteeringConfig, TargetInfo};
pub use field::{EnergyFunction, VectorField};
pub use steering::{follow, JointTarget, Steering};

use crate::density::{Density, Evaluation};
use crate::device::{self, Device, Driver};
use crate::error::{Error, Result};
use crate::io::model_file::{self, ModelFile};
use crate::nn::Real;
use std::path::Path;
use std::sync::Arc;

/// The floating-point type of a model's networks. Coordinates and densities are f64 in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    F64,
    /// f32, with weights rounded to bfloat16 once and for all. For TarFlows, where drawing a single sample takes as
    /// long as reading the weights.
    Bf16,
}

/// A density with its description.
pub trait Model: Density {
    fn card(&self) -> &ModelCard;

    /// Hash of the file's bytes, hexadecimal; empty for a model that was never saved.
    fn hash(&self) -> &str;

    /// The map to latent space, for models that have one.
    fn flow(&self) -> Option<&dyn Flow> {
        None
    }

    /// The network of a continuous flow.
    fn field(&self) -> Option<&dyn VectorField> {
        None
    }

    /// The device it runs on, for messages: `cpu`, or the name of a GPU.
    fn device(&self) -> String {
        Device::cpu().describe()
    }

    /// The generators of metastable states.
    fn modes(&self) -> Option<&modes::ModeGenerators> {
        None
    }

    /// The network of an energy-based model.
    fn energy(&self) -> Option<&dyn EnergyFunction> {
        None
    }

    /// What a TarFlow offers beyond other models.
    fn autoregressive(&self) -> Option<&dyn tarflow::Autoregressive> {
        None
    }

    /// For a temperature-steerable model, the temperature it is set to; the last coordinates of such a model may be
    /// auxiliary.
    fn steering(&self) -> Option<Steering> {
        None
    }

    /// The model at a temperature (K): draws and densities are those of that temperature, the card is unchanged.
    ///
    /// Errors: a model that is not steerable, or whose file does not give its training temperature.
    fn at_temperature(&self, _kelvin: f64) -> Result<Arc<dyn Model>> {
        Err(self.does_not_follow())
    }

    /// The error that says why the model has a single temperature.
    fn does_not_follow(&self) -> Error {
        Error::Unsupported(format!(
            "this model of kind {} cannot be used at another temperature: train a coupling flow with `steerable`, or a \
             model for each temperature",
            self.card().model.kind()
        ))
    }
}

pub(crate) const LOG_2_PI: f64 = 1.837_877_066_409_345_3;

/// An invertible map between a latent point z and a configuration x.
pub trait Flow: Send + Sync {
    fn latent_dimension(&self) -> usize;

    /// `z[n][latent]` → `x[n][dimension]`, ln|∂x/∂z|, and log q.
    fn generate(&self, z: &[f64], x: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()>;

    /// `x[n][dimension]` → `z[n][latent]`, ln|∂x/∂z| (of the generating direction), and log q.
    fn encode(&self, x: &[f64], z: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()>;

    /// Whether the prior of latent coordinate i is uniform on [0, 1); else it is the standard normal.
    fn is_uniform(&self, _: usize) -> bool {
        false
    }

    /// Pulls gradients back to the latent space: at `z[n][latent]`, from `gx[n][dimension]` with respect to x and
    /// `g_log_det[n]` with respect to ln|∂x/∂z| to `gz[n][latent]` with respect to z; zero in rows outside the support.
    /// Errors: a flow that cannot do this (also with n = 0).
    fn pull_back(&self, _z: &[f64], _gx: &[f64], _g_log_det: &[f64], _gz: &mut [f64]) -> Result<()> {
        Err(Error::Unsupported(
            "this flow provides no gradients with respect to its latent coordinates: use a coupling flow".into(),
        ))
    }
}

/// A model's map to latent space. Errors: a model that has none.
pub fn flow_of(model: &dyn Model) -> Result<&dyn Flow> {
    model.flow().ok_or_else(|| {
        let kind = model.card().model.kind();
        Error::Unsupported(format!("a model of kind {kind} has no latent space: use a flow, such as a coupling flow"))
    })
}

/// Loads a model file with f32 networks onto the default device ([`device::default`]).
///
/// Errors: a file that cannot be read or is damaged, parameters out of range, a device that lacks something.
pub fn load(path: impl AsRef<Path>) -> Result<Arc<dyn Model>> {
    load_with(path, Precision::default())
}

/// As [`load`], with networks of the given precision. Errors: those of [`load`].
pub fn load_with(path: impl AsRef<Path>, precision: Precision) -> Result<Arc<dyn Model>> {
    let path = path.as_ref();
    let bytes = crate::io::read(path)?;
    from_bytes(&path.display().to_string(), &bytes, precision)
}

/// Loads a model file onto a device. Errors: those of [`load`], naming what the device lacks.
pub fn load_on(path: impl AsRef<Path>, precision: Precision, device: &Device) -> Result<Arc<dyn Model>> {
    let path = path.as_ref();
    let bytes = crate::io::read(path)?;
    from_bytes_on(&path.display().to_string(), &bytes, precision, device)
}

/// Loads a model from the bytes of a file; `name` stands for the path in error messages. Errors: those of [`load`].
pub fn load_bytes(name: &str, bytes: &[u8]) -> Result<Arc<dyn Model>> {
    from_bytes(name, bytes, Precision::default())
}

/// As [`load_bytes`], with networks of the given precision. Errors: those of [`load`].
pub fn from_bytes(name: &str, bytes: &[u8], precision: Precision) -> Result<Arc<dyn Model>> {
    from_bytes_on(name, bytes, precision, &device::default()?)
}

/// As [`from_bytes`], onto a device of the caller's choice. Errors: those of [`load`].
pub fn from_bytes_on(name: &str, bytes: &[u8], precision: Precision, device: &Device) -> Result<Arc<dyn Model>> {
    let file = model_file::read(name, bytes)?;
    build(&file, precision, device).map_err(|error| match error {
        Error::Model { .. } | Error::Engine(_) | Error::Unsupported(_) => error,
        other => Error::model(name, other.to_string()),
    })
}

fn build(file: &ModelFile, precision: Precision, device: &Device) -> Result<Arc<dyn Model>> {
    match precision {
        Precision::F32 => build_as::<f32>(file, device),
        Precision::F64 => build_as::<f64>(file, device),
        Precision::Bf16 => match (&file.card.model, device.driver()) {
            (ModelConfig::Tarflow(_) | ModelConfig::TransferableTarflow(_), None) => {
                Ok(Arc::new(tarflow::TarFlow::<f32>::from_file(file)?.with_bfloat16_weights()?))
            }
            (other, _) => Err(Error::Unsupported(format!(
                "bf16 weights are supported only for TarFlows on the CPU; use f32 for this model of kind {}",
                other.kind()
            ))),
        },
    }
}

fn build_as<R: Real>(file: &ModelFile, device: &Device) -> Result<Arc<dyn Model>> {
    if file.card.steering.is_some() && !matches!(file.card.model, ModelConfig::Coupling(_)) {
        let kind = file.card.model.kind();
        return Err(Error::invalid(format!(
            "`steering` is not supported for a model of kind {kind}, only for coupling flows"
        )));
    }
    if let Some(driver) = device.driver() {
        return build_on::<R>(file, device, driver);
    }
    Ok(match &file.card.model {
        ModelConfig::Coupling(_) => Arc::new(coupling::CouplingFlow::<R>::from_file(file)?),
        ModelConfig::EgnnFlow(_) => Arc::new(egnn_flow::EgnnFlow::<R>::from_file(file)?),
        ModelConfig::GraphormerEbm(_) => Arc::new(graphormer_ebm::GraphormerEbm::<R>::from_file(file)?),
        ModelConfig::GvpEbm(_) => Arc::new(gvp_ebm::GvpEbm::<R>::from_file(file)?),
        ModelConfig::GvpFlow(_) => Arc::new(gvp_flow::GvpFlow::<R>::from_file(file)?),
        ModelConfig::InvariantEbm(_) => Arc::new(invariant_ebm::InvariantEbm::<R>::from_file(file)?),
        ModelConfig::Tarflow(_) => Arc::new(tarflow::TarFlow::<R>::from_file(file)?),
        ModelConfig::TransferableTarflow(_) => Arc::new(tarflow::TarFlow::<R>::from_file(file)?),
        ModelConfig::MlpEbm(_) => Arc::new(mlp_ebm::MlpEbm::<R>::from_file(file)?),
        ModelConfig::Modes(_) => Arc::new(modes::ModeGenerators::from_file::<R>(file, device)?),
    })
}

fn build_on<R: Real>(file: &ModelFile, device: &Device, driver: &Arc<dyn Driver>) -> Result<Arc<dyn Model>> {
    Ok(match &file.card.model {
        ModelConfig::Coupling(_) => Arc::new(coupling::CouplingFlow::<R>::from_file(file)?.on_device(driver)?),
        ModelConfig::EgnnFlow(_) => Arc::new(egnn_flow::EgnnFlow::<R>::from_file(file)?.on_device(driver)?),
        ModelConfig::GraphormerEbm(_) => {
            Arc::new(graphormer_ebm::GraphormerEbm::<R>::from_file(file)?.on_device(driver)?)
        }
        ModelConfig::GvpEbm(_) => Arc::new(gvp_ebm::GvpEbm::<R>::from_file(file)?.on_device(driver)?),
        ModelConfig::GvpFlow(_) => Arc::new(gvp_flow::GvpFlow::<R>::from_file(file)?.on_device(driver)?),
        ModelConfig::InvariantEbm(_) => Arc::new(invariant_ebm::InvariantEbm::<R>::from_file(file)?.on_device(driver)?),
        ModelConfig::MlpEbm(_) => Arc::new(mlp_ebm::MlpEbm::<R>::from_file(file)?.on_device(driver)?),
        ModelConfig::Modes(_) => Arc::new(modes::ModeGenerators::from_file::<R>(file, device)?),
        ModelConfig::Tarflow(_) | ModelConfig::TransferableTarflow(_) => {
            Arc::new(tarflow::TarFlow::<R>::from_file(file)?.on_device(driver)?)
        }
    })
}
