//! Models: loading, sampling, densities.

use super::status::{computing, guarded};
use super::structs::*;
use super::{box_of, count, read, reference, reference_mut, slice, slice_mut, utf8, write, Versioned};
use crate::density::{Evaluation, Scope};
use crate::device::{self, Device};
use crate::error::{Error, Result};
use crate::models::labels::require_start;
use crate::models::steering::{dimension_without_auxiliary, temperature};
use crate::models::tarflow::{self, Decoding, Jacobi};
use crate::models::{self, flow_of, Model, Precision};
use crate::moves::{check_box, make_whole};
use crate::parallel::room;
use crate::rng::{Stream, StreamId};
use std::ffi::{c_char, CString};
use std::sync::Arc;

/// A loaded model. All functions that take it const may be called from several threads at once.
pub struct modejump_model {
    pub(super) model: Arc<dyn Model>,
    metadata: CString,
    hash: CString,
    pub(super) device: CString,
}

impl modejump_model {
    fn new(model: Arc<dyn Model>) -> Result<Box<modejump_model>> {
        let json =
            serde_json::to_string(model.card()).map_err(|e| Error::invalid(format!("invalid model card: {e}")))?;
        let text = |s: String| CString::new(s).map_err(|e| Error::invalid(format!("invalid model card: {e}")));
        let (hash, device) = (text(model.hash().to_string())?, text(model.device())?);
        Ok(Box::new(modejump_model { metadata: text(json)?, hash, device, model }))
    }

    /// Applies the decoding that a caller asks for to a model.
    fn decoding(model: Arc<dyn Model>, given: &modejump_model_options) -> Result<Box<modejump_model>> {
        let options = tarflow::Options { decoding: decoding_of(given)?, ..tarflow::Options::default() };
        modejump_model::new(tarflow::with_options(model, options)?)
    }
}

/// Loads a model file. On success `*model` is a new handle, to be freed with `modejump_model_free`.
///
/// # Safety
/// `path` is NULL or a NUL-terminated path; `model` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_load(path: *const c_char, model: *mut *mut modejump_model) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (path, out) = unsafe { (super::path(path)?, reference_mut(model, "model")?) };
        *out = Box::into_raw(modejump_model::new(models::load(path)?)?);
        Ok(())
    })
}

/// Sets the defaults, those of `modejump_model_load`: single precision, decoding token after token.
/// `options->struct_size` must be set.
///
/// # Safety
/// `options` is NULL or points to a struct of the size it says.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_options_init(options: *mut modejump_model_options) -> i32 {
    // SAFETY: the caller's promise.
    guarded(|| unsafe { write(options, &modejump_model_options::empty()) })
}

/// Loads a model file with options: another precision, another decoding of a TarFlow, or a device for this model alone.
/// Refused (6) for a model that has no such option. On success `*model` is a new handle, to be freed with
/// `modejump_model_free`.
///
/// # Safety
/// `path` is NULL or a NUL-terminated path; `options` is NULL or a struct of the size it says; `model` is NULL
/// or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_load_with(
    path: *const c_char,
    options: *const modejump_model_options,
    model: *mut *mut modejump_model,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (path, given, out) = unsafe { (super::path(path)?, read(options)?, reference_mut(model, "model")?) };
        let loaded = models::load_on(path, precision_of(&given)?, &device_of(&given)?)?;
        *out = Box::into_raw(modejump_model::decoding(loaded, &given)?);
        Ok(())
    })
}

/// Loads a model from the `length` bytes of a model file in memory. The bytes are not needed afterwards.
///
/// # Safety
/// `data` is NULL or points to `length` bytes; `model` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_load_buffer(
    data: *const u8,
    length: u64,
    model: *mut *mut modejump_model,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (bytes, out) = unsafe { (slice(data, length, 1, "data")?, reference_mut(model, "model")?) };
        *out = Box::into_raw(modejump_model::new(models::load_bytes(IN_MEMORY, bytes)?)?);
        Ok(())
    })
}

/// As `modejump_model_load_buffer`, with the options of `modejump_model_load_with`.
///
/// # Safety
/// `data` is NULL or points to `length` bytes; `options` is NULL or a struct of the size it says; `model` is NULL or
/// points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_load_buffer_with(
    data: *const u8,
    length: u64,
    options: *const modejump_model_options,
    model: *mut *mut modejump_model,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (bytes, given) = unsafe { (slice(data, length, 1, "data")?, read(options)?) };
        // SAFETY: the caller's promise.
        let out = unsafe { reference_mut(model, "model") }?;
        let loaded = models::from_bytes_on(IN_MEMORY, bytes, precision_of(&given)?, &device_of(&given)?)?;
        *out = Box::into_raw(modejump_model::decoding(loaded, &given)?);
        Ok(())
    })
}

/// Stands in for the path in messages.
const IN_MEMORY: &str = "(in memory)";

fn precision_of(given: &modejump_model_options) -> Result<Precision> {
    match given.precision {
        MODEJUMP_F32 => Ok(Precision::F32),
        MODEJUMP_F64 => Ok(Precision::F64),
        MODEJUMP_BF16 => Ok(Precision::Bf16),
        other => Err(Error::invalid(format!("modejump_model_options.precision is {other}: use 0, 1 or 2"))),
    }
}

fn device_of(given: &modejump_model_options) -> Result<Device> {
    match given.flags {
        0 => device::default(),
        MODEJUMP_ON_CPU => Ok(Device::cpu()),
        // SAFETY: that the context outlives the model is a promise of the flag.
        MODEJUMP_CURRENT_CONTEXT => unsafe { device::default()?.in_current_context() },
        other => Err(Error::invalid(format!("modejump_model_options.flags is {other}: use 0, 1 or 2"))),
    }
}

fn decoding_of(given: &modejump_model_options) -> Result<Decoding> {
    let iteration = |segment| {
        Decoding::Jacobi(Jacobi { segment, tolerance: given.decoding_tolerance, passes: count(given.decoding_passes) })
    };
    match given.decoding {
        MODEJUMP_SEQUENTIAL => Ok(Decoding::Sequential),
        MODEJUMP_JACOBI => Ok(iteration(usize::MAX)),
        MODEJUMP_GAUSS_SEIDEL => Ok(iteration(count(given.segment))),
        other => Err(Error::invalid(format!("modejump_model_options.decoding is {other}: use 0, 1 or 2"))),
    }
}

/// Frees a model; NULL does nothing. Moves made from it stay valid.
///
/// # Safety
/// `model` is NULL or a handle that was not freed; no other call uses it.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_free(model: *mut modejump_model) -> i32 {
    guarded(|| {
        if !model.is_null() {
            // SAFETY: the handle came from Box::into_raw and is freed once.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    })
}

/// Writes the number of coordinates of a configuration: three for each atom of a molecule.
///
/// # Safety
/// `model` is NULL or a live handle; `dimension` is NULL or points to a number.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_dimension(model: *const modejump_model, dimension: *mut u64) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (model, out) = unsafe { (reference(model, "model")?, reference_mut(dimension, "dimension")?) };
        *out = model.model.dimension() as u64;
        Ok(())
    })
}

/// Writes the temperature, K, of the ensemble that the model describes, or 0 if its file does not say.
///
/// # Safety
/// `model` is NULL or a live handle; `kelvin` is NULL or points to a number.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_temperature(model: *const modejump_model, kelvin: *mut f64) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (model, out) = unsafe { (reference(model, "model")?, reference_mut(kelvin, "kelvin")?) };
        *out = temperature(model.model.as_ref()).or(model.model.card().temperature).unwrap_or(0.0);
        Ok(())
    })
}

/// Writes the latent temperature of a steerable model, i.e. its temperature divided by that of its training, or 0 for a
/// model with a fixed temperature; and how many of its coordinates, the last ones, are auxiliary. Moves leave these
/// out: their configurations have `dimension - auxiliary` coordinates. Samples have them, and log-densities are those
/// of all coordinates together.
///
/// # Safety
/// `model` is NULL or a live handle; `variance` and `auxiliary` are NULL or point to a number.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_steering(
    model: *const modejump_model,
    variance: *mut f64,
    auxiliary: *mut u64,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let model = &unsafe { reference(model, "model") }?.model;
        // SAFETY: the caller's promise.
        let (variance, auxiliary) =
            unsafe { (reference_mut(variance, "variance")?, reference_mut(auxiliary, "auxiliary")?) };
        let steering = model.steering();
        *variance = steering.map_or(0.0, |s| s.variance);
        *auxiliary = steering.map_or(0, |s| s.auxiliary as u64);
        Ok(())
    })
}

/// Writes the standard deviation, nm, of each component of the centroid of x if that is noise, as in a TarFlow, or 0.
/// Such a density is one of x relative to that of its centroid, so log q depends on where the centroid is. Moves take
/// care of it; before a log-density of other configurations is used in a weight, move the centroid of each to a point
/// drawn from that normal distribution.
///
/// # Safety
/// `model` is NULL or a live handle; `sigma` is NULL or points to a number.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_centroid_noise(model: *const modejump_model, sigma: *mut f64) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (model, out) = unsafe { (reference(model, "model")?, reference_mut(sigma, "sigma")?) };
        *out = match model.model.scope() {
            Scope::Noisy { sigma } => sigma,
            _ => 0.0,
        };
        Ok(())
    })
}

/// Makes a model at another temperature, in K, from a steerable one: its samples and densities are those of that
/// temperature. It shares the parameters of the old model, which does not change. Refused (6) for a model with a fixed
/// temperature. On success `*out` is a new handle, to be freed with `modejump_model_free`.
///
/// # Safety
/// `model` is NULL or a live handle; `out` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_at_temperature(
    model: *const modejump_model,
    kelvin: f64,
    out: *mut *mut modejump_model,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (model, out) = unsafe { (reference(model, "model")?, reference_mut(out, "out")?) };
        *out = Box::into_raw(modejump_model::new(model.model.at_temperature(kelvin)?)?);
        Ok(())
    })
}

/// Writes the description in the model file: JSON with the kind and sizes of the model, its coordinates, atoms, bonds
/// and temperature. The string belongs to the model.
///
/// # Safety
/// `model` is NULL or a live handle; `json` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_metadata(model: *const modejump_model, json: *mut *const c_char) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (model, out) = unsafe { (reference(model, "model")?, reference_mut(json, "json")?) };
        *out = model.metadata.as_ptr();
        Ok(())
    })
}

/// Writes the hash of the model file's bytes, hexadecimal. The string belongs to the model.
///
/// # Safety
/// `model` is NULL or a live handle; `hex` is NULL or points to a pointer.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_hash(model: *const modejump_model, hex: *mut *const c_char) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (model, out) = unsafe { (reference(model, "model")?, reference_mut(hex, "hex")?) };
        *out = model.hash.as_ptr();
        Ok(())
    })
}

/// Finds the model's atoms in a caller's list of `n` atoms: `order[i]` becomes the index in that list of the model's
/// atom i. Atoms are identified by `names[n]` within residues, also by those of other conventions (HB1 and HB2 for HB2
/// and HB3), and residues by the names in their labels `residues[n]` (`ALA2`), in the order of the list. A model
/// without atom names gives 0, 1, 2, … Fails, naming the atom, if the lists differ.
///
/// # Safety
/// `model` is NULL or a live handle; `residues` and `names` are NULL or `n` NUL-terminated strings; `order` is NULL or
/// has room for `n` numbers.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_match_atoms(
    model: *const modejump_model,
    n: u64,
    residues: *const *const c_char,
    names: *const *const c_char,
    order: *mut u64,
) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (model, out) = unsafe { (&reference(model, "model")?.model, slice_mut(order, n, 1, "order")?) };
        // SAFETY: the caller's promise.
        let (residues, names) = unsafe { (strings(residues, n, "residues")?, strings(names, n, "names")?) };
        let found = model.card().match_atoms(&residues, &names)?;
        out.iter_mut().zip(found).for_each(|(out, k)| *out = k as u64);
        Ok(())
    })
}

/// Checks that `masses[n]`, in dalton, can be those of the model's atoms in its order. Repartitioned hydrogen masses,
/// united atoms and virtual sites pass; a model without a topology accepts any masses. Fails, naming the atom, if an
/// element has another mass, as happens where atoms have changed places.
///
/// # Safety
/// `model` is NULL or a live handle; `masses` is NULL or points to `n` numbers.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_check_masses(model: *const modejump_model, n: u64, masses: *const f64) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (model, masses) = unsafe { (&reference(model, "model")?.model, slice(masses, n, 1, "masses")?) };
        model.card().topology.as_ref().map_or(Ok(()), |topology| topology.require_masses(masses))
    })
}

/// Checks that jumps can start from the configuration `x[dimension]` (nm). Fails, naming atoms, if most bonds are far
/// longer or shorter than usual, as in angstrom; if bonded atoms are far apart, as in another order of the atoms; if
/// equivalent atoms, such as the hydrogens of a CH2 or CH3 group, are not numbered as in the training frames of the
/// model (the density is larger by far with two of them exchanged); if a stereocentre has the opposite handedness; or if
/// a bond has another length than the model keeps. No jump from there would be accepted. `box`, NULL or nine numbers as
/// in `modejump_state`, makes the molecule whole first. For a model without a topology neither bonds nor equivalent
/// atoms are known; for one with auxiliary coordinates only finite numbers and kept bonds are
/// checked.
///
/// # Safety
/// `model` is NULL or a live handle; `x` is NULL or points to `n` numbers; `box` is NULL or points to nine numbers.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_check_labels(
    model: *const modejump_model,
    n: u64,
    x: *const f64,
    r#box: *const f64,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let (model, x) = unsafe { (&reference(model, "model")?.model, slice(x, n, 1, "x")?) };
        // SAFETY: as above.
        let box_vectors = unsafe { box_of(r#box) };
        if x.len() != dimension_without_auxiliary(model.as_ref()) {
            let needed = dimension_without_auxiliary(model.as_ref());
            return Err(Error::invalid(format!("found {n} coordinates, but the model's atoms have {needed}")));
        }
        let mut x = x.to_vec();
        make_whole(model.as_ref(), box_vectors.as_ref(), &mut x)?;
        require_start(model.as_ref(), &x)
    })
}

/// Checks that attempts with a box are possible. Fails (6) for a model whose atoms cannot be made whole in one, such as
/// those of several molecules, as every such attempt would; a program checks once, at its start.
///
/// # Safety
/// `model` is NULL or a live handle.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_check_box(model: *const modejump_model) -> i32 {
    // SAFETY: the caller's promise.
    guarded(|| check_box(unsafe { reference(model, "model") }?.model.as_ref()))
}

/// # Safety
/// `pointers` is NULL or points to `n` pointers, each NULL or to a NUL-terminated string that lives as long as `'a`.
unsafe fn strings<'a>(pointers: *const *const c_char, n: u64, name: &str) -> Result<Vec<&'a str>> {
    // SAFETY: the caller's promise.
    let pointers = unsafe { slice(pointers, n, 1, name) }?;
    // SAFETY: the caller's promise.
    pointers.iter().map(|&text| unsafe { utf8(text, name) }).collect()
}

/// Draws samples number `first` to `first + n - 1` of the sequence that belongs to `seed`: sample i is the same however
/// the sequence is split into calls, up to the rounding of a batch. Writes `x[n][dimension]` (nm for molecules) and
/// `log_density[n]`, the natural logarithm of the normalised density; -inf marks a sample that must not be used. The
/// volume that densities refer to differs between kinds of models by a constant, given in docs/comparing.md.
///
/// # Safety
/// `model` is NULL or a live handle; `x` and `log_density` are NULL or have room for that many numbers.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_sample(
    model: *const modejump_model,
    seed: u64,
    first: u64,
    n: u64,
    x: *mut f64,
    log_density: *mut f64,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let model = &unsafe { reference(model, "model") }?.model;
        // SAFETY: the caller's promise.
        let (x, out) =
            unsafe { (slice_mut(x, n, model.dimension(), "x")?, slice_mut(log_density, n, 1, "log_density")?) };
        let mut evaluations = room(Some(out.len()), Evaluation::inside(0.0))?;
        // Sample into our own memory first: the caller's is written only on success.
        let mut samples = room(Some(x.len()), 0.0)?;
        let streams = |row: usize| Stream::new(seed, StreamId::Sample, first.wrapping_add(row as u64), 0);
        model.sample(&streams, &mut samples, &mut evaluations)?;
        x.copy_from_slice(&samples);
        copy(&evaluations, out);
        Ok(())
    })
}

/// Writes log q of each of the `n` configurations `x[n][dimension]` into `log_density[n]`; -inf where the density is
/// zero or undefined, which includes configurations with NaN. See also `modejump_model_centroid_noise`.
///
/// # Safety
/// `model` is NULL or a live handle; `x` and `log_density` are NULL or point to that many numbers.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_log_density(
    model: *const modejump_model,
    n: u64,
    x: *const f64,
    log_density: *mut f64,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let model = &unsafe { reference(model, "model") }?.model;
        // SAFETY: the caller's promise.
        let (x, out) = unsafe { (slice(x, n, model.dimension(), "x")?, slice_mut(log_density, n, 1, "log_density")?) };
        let mut evaluations = room(Some(out.len()), Evaluation::inside(0.0))?;
        model.log_density(x, &mut evaluations)?;
        copy(&evaluations, out);
        Ok(())
    })
}

/// As `modejump_model_log_density`, and also writes the gradient with respect to x into `gradient[n][dimension]`, zero
/// in rows where the logarithm is -inf.
///
/// # Safety
/// `model` is NULL or a live handle; `x`, `log_density` and `gradient` are NULL or point to that many numbers.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_log_density_gradient(
    model: *const modejump_model,
    n: u64,
    x: *const f64,
    log_density: *mut f64,
    gradient: *mut f64,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let model = &unsafe { reference(model, "model") }?.model;
        let d = model.dimension();
        // SAFETY: the caller's promise.
        let (x, out) = unsafe { (slice(x, n, d, "x")?, slice_mut(log_density, n, 1, "log_density")?) };
        // SAFETY: the caller's promise.
        let gradient = unsafe { slice_mut(gradient, n, d, "gradient") }?;
        let mut evaluations = room(Some(out.len()), Evaluation::inside(0.0))?;
        let mut gradients = room(Some(x.len()), 0.0)?;
        model.log_density_gradient(x, &mut evaluations, &mut gradients)?;
        gradient.copy_from_slice(&gradients);
        copy(&evaluations, out);
        Ok(())
    })
}

/// Writes the number of latent coordinates of a flow. Fails (6) for a model without a latent space.
///
/// # Safety
/// `model` is NULL or a live handle; `dimension` is NULL or valid.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_latent_dimension(model: *const modejump_model, dimension: *mut u64) -> i32 {
    guarded(|| {
        // SAFETY: the caller's promise.
        let model = &unsafe { reference(model, "model") }?.model;
        // SAFETY: the caller's promise.
        *unsafe { reference_mut(dimension, "dimension") }? = flow_of(model.as_ref())?.latent_dimension() as u64;
        Ok(())
    })
}

/// Maps the latent points `z[n][latent dimension]` of a flow to configurations: writes `x[n][dimension]`, and ln|dx/dz|
/// and log q, each `[n]`; log q is -inf where the point has no configuration in the support, and the numbers of that row
/// are meaningless. Fails (6) for a model without a latent space.
///
/// # Safety
/// `model` is NULL or a live handle; the arrays are NULL or of that many numbers.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_generate(
    model: *const modejump_model,
    n: u64,
    z: *const f64,
    x: *mut f64,
    log_det: *mut f64,
    log_density: *mut f64,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { through_flow(model, n, (z, "z"), (x, "x"), [log_det, log_density], Way::Generate) }
}

/// Inverse of `modejump_model_generate`: writes the latent points `z[n][latent dimension]` of configurations
/// `x[n][dimension]`, and ln|dx/dz| and log q, each `[n]`. Rows whose log q is -inf have no latent point, and
/// meaningless numbers. Fails (6) for a model without a latent space.
///
/// # Safety
/// `model` is NULL or a live handle; the arrays are NULL or of that many numbers.
#[no_mangle]
pub unsafe extern "C" fn modejump_model_encode(
    model: *const modejump_model,
    n: u64,
    x: *const f64,
    z: *mut f64,
    log_det: *mut f64,
    log_density: *mut f64,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { through_flow(model, n, (x, "x"), (z, "z"), [log_det, log_density], Way::Encode) }
}

/// Direction through a flow: to configurations, or to latent points.
#[derive(Clone, Copy)]
enum Way {
    Generate,
    Encode,
}

/// Maps `n` points from one end of a flow to the other, with `[ln|dx/dz|, log q]`; the names are for messages.
///
/// # Safety
/// `model` is NULL or a live handle; the arrays are NULL or of that many numbers.
unsafe fn through_flow(
    model: *const modejump_model,
    n: u64,
    (from, from_name): (*const f64, &str),
    (to, to_name): (*mut f64, &str),
    [log_det, log_density]: [*mut f64; 2],
    way: Way,
) -> i32 {
    computing(|| {
        // SAFETY: the caller's promise.
        let model = &unsafe { reference(model, "model") }?.model;
        let flow = flow_of(model.as_ref())?;
        let [of_from, of_to] = match way {
            Way::Generate => [flow.latent_dimension(), model.dimension()],
            Way::Encode => [model.dimension(), flow.latent_dimension()],
        };
        // SAFETY: the caller's promise.
        let (from, to) = unsafe { (slice(from, n, of_from, from_name)?, slice_mut(to, n, of_to, to_name)?) };
        // SAFETY: the caller's promise.
        let (log_det, out) =
            unsafe { (slice_mut(log_det, n, 1, "log_det")?, slice_mut(log_density, n, 1, "log_density")?) };
        // Copies, so that nothing is written if it fails.
        let (mut points, mut logarithms) = (to.to_vec(), log_det.to_vec());
        let mut evaluations = room(Some(out.len()), Evaluation::inside(0.0))?;
        match way {
            Way::Generate => flow.generate(from, &mut points, &mut logarithms, &mut evaluations)?,
            Way::Encode => flow.encode(from, &mut points, &mut logarithms, &mut evaluations)?,
        }
        to.copy_from_slice(&points);
        log_det.copy_from_slice(&logarithms);
        copy(&evaluations, out);
        Ok(())
    })
}

fn copy(evaluations: &[Evaluation], out: &mut [f64]) {
    out.iter_mut().zip(evaluations).for_each(|(out, e)| *out = e.log_density);
}
