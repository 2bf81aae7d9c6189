//! NumPy arrays: `[n][atoms][3]` or `[n][dimension]`, float32 or float64.

use super::{without_panic, Frames};
use crate::error::{Error, Result};
use std::path::Path;

/// Reads all frames. Errors: another type or shape, or a malformed file.
pub fn read(path: &Path) -> Result<Frames> {
    use ndarray_npy::{ViewNpyError, ViewNpyExt};
    let file = crate::io::read(path)?;
    // numbers aligned as the views require; a view allocates nothing that the file does not hold
    let mut numbers = vec![0.0f64; file.len().div_ceil(8)];
    let bytes = &mut bytemuck::cast_slice_mut(&mut numbers)[..file.len()];
    bytes.copy_from_slice(&file);
    let bytes = &*bytes;
    // the reader asserts that a shape does not overflow
    let read = without_panic(|| match ndarray::ArrayViewD::<f64>::view_npy(bytes) {
        Err(ViewNpyError::WrongDescriptor(_)) => Ok(ndarray::ArrayViewD::<f32>::view_npy(bytes)?.mapv(f64::from)),
        array => Ok(array?.to_owned()),
    });
    let array = read.ok_or_else(|| Error::file(path, "malformed shape"))?.map_err(|e| {
        let reason = match e {
            ViewNpyError::WrongDescriptor(_) | ViewNpyError::NonNativeEndian => {
                "unsupported number type: save the numbers as little-endian float32 or float64".into()
            }
            e => e.to_string(),
        };
        Error::file(path, reason)
    })?;
    Frames::from_shape(path, array.shape(), array.iter().copied().collect())
}

/// Formats frames as float64, `[n][atoms][3]` if the dimension is a multiple of three, else `[n][dimension]`. Errors:
/// those of the writer.
pub fn write(path: &Path, frames: &Frames) -> Result<Vec<u8>> {
    use ndarray_npy::WriteNpyExt;
    let bad = |e: String| Error::file(path, e);
    let array = ndarray::ArrayD::from_shape_vec(frames.shape(), frames.x.clone()).map_err(|e| bad(e.to_string()))?;
    let mut bytes = Vec::new();
    array.write_npy(&mut bytes).map_err(|e| bad(e.to_string()))?;
    Ok(bytes)
}
