//! Model files: safetensors, with the model's card as JSON under the metadata key `modejump`.
//!
//! The loader is strict: every tensor that the model needs must be there, with the right shape and finite numbers, and
//! no other. Errors name the file, and say whether it cannot be read, is not safetensors, or has a wrong or missing
//! card or tensor.

use crate::error::{Error, Result};
use crate::models::card::{ModelCard, ModelKind, FORMAT};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};
use safetensors::SafeTensorError;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Metadata key of the card.
pub const KEY: &str = "modejump";

/// A row-major tensor, widened to f64 (exact for every type that is read).
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// A parsed model file.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// Path, or its replacement in messages.
    pub name: String,
    pub hash: String,
    pub card: ModelCard,
    pub tensors: BTreeMap<String, Tensor>,
}

impl ModelFile {
    /// Data of a tensor, which must have this shape; the error names it.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<&[f64]> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.error(format!("tensor {name} is missing")))?;
        if tensor.shape != shape {
            return Err(self.error(format!("tensor {name} has shape {:?}, expected {shape:?}", tensor.shape)));
        }
        if let Some(i) = tensor.data.iter().position(|v| !v.is_finite()) {
            return Err(self.error(format!("tensor {name} contains {} at position {i}", tensor.data[i])));
        }
        Ok(&tensor.data)
    }

    /// Requires that there are no other tensors than `known`. Errors: there is one (named).
    pub fn only(&self, known: &[String]) -> Result<()> {
        match self.tensors.keys().find(|name| !known.contains(name)) {
            Some(name) => Err(self.error(format!("tensor {name} is not part of the model"))),
            None => Ok(()),
        }
    }

    /// Configuration of a model that must be of this kind. Errors: another kind.
    pub fn config<C: ModelKind>(&self) -> Result<&C> {
        let found = self.card.model.kind();
        C::of(&self.card.model)
            .ok_or_else(|| self.error(format!("expected a model of kind {}, found {found}", C::NAME)))
    }

    /// An error that names the file.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::model(&self.name, reason)
    }
}

/// Reads a model file from disk, as [`read`].
pub fn open(path: &Path) -> Result<ModelFile> {
    read(&path.display().to_string(), &super::read(path)?)
}

/// Reads all tensors of a safetensors file that need not be a model from disk, as [`read_tensors`].
pub fn open_tensors(path: &Path) -> Result<(Tensors, HashMap<String, String>)> {
    let (tensors, header) = parse(&super::read(path)?, "").map_err(|reason| Error::file(path, reason))?;
    Ok((tensors, metadata_of(&header)))
}

/// Reads the card of a model file from disk, as [`read_card`].
pub fn open_card(path: &Path) -> Result<ModelCard> {
    read_card(&path.display().to_string(), &super::read(path)?)
}

/// As [`read_tensors`], for a file that may also be a PyTorch checkpoint, as errors say.
pub fn read_checkpoint(name: &str, bytes: &[u8]) -> Result<(Tensors, HashMap<String, String>)> {
    const ADVICE: &str = "; expected tensors in safetensors or a PyTorch checkpoint (.pt, .pth, .ckpt)";
    let (tensors, header) = parse(bytes, ADVICE).map_err(|reason| Error::file(name, reason))?;
    Ok((tensors, metadata_of(&header)))
}

/// All tensors of a safetensors file as f64, and its metadata.
pub fn read_tensors(name: &str, bytes: &[u8]) -> Result<(Tensors, HashMap<String, String>)> {
    let (tensors, header) = read_with_header(name, bytes)?;
    Ok((tensors, metadata_of(&header)))
}

fn metadata_of(header: &Metadata) -> HashMap<String, String> {
    header.metadata().clone().unwrap_or_default()
}

/// All tensors of a safetensors file as f64, and its header.
fn read_with_header(name: &str, bytes: &[u8]) -> Result<(Tensors, Metadata)> {
    const ADVICE: &str =
        "; use `modejump convert` to create a model file from a PyTorch checkpoint (.pt, .pth, .ckpt) or from \
                          tensors in safetensors";
    parse(bytes, ADVICE).map_err(|reason| Error::model(name, reason))
}

fn parse(bytes: &[u8], advice: &str) -> std::result::Result<(Tensors, Metadata), String> {
    let unreadable = |e: SafeTensorError| match e {
        _ if bytes.is_empty() => "the file is empty, so copy it again".into(),
        SafeTensorError::MetadataIncompleteBuffer => {
            "the length does not match the header: the file is truncated or corrupt, so copy it again".into()
        }
        _ if ends_in_header(bytes) => "the file ends within its header: it is truncated, so copy it again".into(),
        e => format!("not a readable safetensors file ({e}){advice}"),
    };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
    let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let mut tensors = BTreeMap::new();
    for (key, view) in file.tensors() {
        let data = widen(&view).ok_or_else(|| format!("tensor {key} has the unsupported type {:?}", view.dtype()))?;
        tensors.insert(key, Tensor { shape: view.shape().to_vec(), data });
    }
    Ok((tensors, header))
}

/// Whether there is the beginning of a safetensors header, JSON of the length in the first eight bytes, but not its end.
fn ends_in_header(bytes: &[u8]) -> bool {
    let Some((length, header)) = bytes.split_first_chunk() else { return false };
    header.first().is_none_or(|first| *first == b'{') && (header.len() as u64) < u64::from_le_bytes(*length)
}

fn widen(view: &TensorView) -> Option<Vec<f64>> {
    macro_rules! values {
        ($type:ty) => {
            values!($type, |v| v as f64)
        };
        ($type:ty, $widen:expr) => {
            view.data()
                .chunks_exact(std::mem::size_of::<$type>())
                .map(|b| <$type>::from_le_bytes(b.try_into().unwrap_or_default()))
                .map($widen)
                .collect()
        };
    }
    Some(match view.dtype() {
        Dtype::F64 => values!(f64),
        Dtype::F32 => values!(f32),
        Dtype::F16 => values!(u16, half),
        Dtype::BF16 => values!(u16, bfloat16),
        Dtype::I64 => values!(i64),
        Dtype::I32 => values!(i32),
        Dtype::U8 => values!(u8),
        Dtype::BOOL => values!(u8, |v| f64::from(u8::from(v != 0))),
        _ => return None,
    })
}

/// Decodes an IEEE binary16: sign, 5 exponent bits, 10 mantissa bits.
pub(super) fn half(bits: u16) -> f64 {
    let sign = if bits & 0x8000 != 0 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    sign * match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15),
    }
}

/// Decodes a bfloat16, the upper half of a single-precision number.
pub(super) fn bfloat16(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

/// Checks that parameters are floating-point numbers: integers would be those of a damaged header, or quantised.
fn require_floating(name: &str, header: &Metadata) -> Result<()> {
    let is_floating = |dtype| matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16);
    match header.tensors().iter().find(|(_, info)| !is_floating(info.dtype)) {
        Some((key, info)) => {
            Err(Error::model(name, format!("tensor {key} has type {:?}, expected a floating-point type", info.dtype)))
        }
        None => Ok(()),
    }
}

/// Parses a model file and checks its card.
pub fn read(name: &str, bytes: &[u8]) -> Result<ModelFile> {
    // before other types, which take eight times as much memory when they are widened
    if let Ok((_, header)) = SafeTensors::read_metadata(bytes) {
        require_floating(name, &header)?;
    }
    let (tensors, header) = read_with_header(name, bytes)?;
    let card = card_in(name, &metadata_of(&header))?;
    Ok(ModelFile { name: name.to_string(), hash: hash(bytes), card, tensors })
}

/// Parses only the card of a model file, without its tensors.
pub fn read_card(name: &str, bytes: &[u8]) -> Result<ModelCard> {
    let (_, header) = SafeTensors::read_metadata(bytes)
        .map_err(|e| Error::model(name, format!("not a readable safetensors file: {e}")))?;
    card_in(name, &header.metadata().clone().unwrap_or_default())
}

fn card_in(name: &str, metadata: &HashMap<String, String>) -> Result<ModelCard> {
    let json = metadata.get(KEY).ok_or_else(|| {
        Error::model(
            name,
            "no `modejump` entry in the metadata; use `modejump convert` for a checkpoint of another program",
        )
    })?;
    let version = serde_json::from_str::<serde_json::Value>(json).ok().and_then(|v| v["format"].as_u64());
    if version != Some(u64::from(FORMAT)) {
        let found = version.map_or("none".to_string(), |v| v.to_string());
        return Err(Error::model(name, format!("format version {found} is not supported (expected version {FORMAT})")));
    }
    let card: ModelCard =
        serde_json::from_str(json).map_err(|e| Error::model(name, format!("the description is malformed: {e}")))?;
    card.check().map_err(|reason| Error::model(name, reason))?;
    Ok(card)
}

/// 128-bit FNV-1a hash, hexadecimal: distinguishes files, but is no defence against forgery.
pub fn hash(bytes: &[u8]) -> String {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let start = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    format!("{:032x}", bytes.iter().fold(start, |h, &b| (h ^ u128::from(b)).wrapping_mul(PRIME)))
}

/// Serialises tensors (f32 or f64) with string metadata.
pub fn write_tensors(
    tensors: &BTreeMap<String, (Vec<usize>, Data)>,
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>> {
    let bytes: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, data))| match data {
            Data::F32(v) => (name.clone(), Dtype::F32, shape.clone(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Data::F64(v) => (name.clone(), Dtype::F64, shape.clone(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        })
        .collect();
    let mut views = Vec::new();
    for (name, dtype, shape, data) in &bytes {
        let view =
            TensorView::new(*dtype, shape.clone(), data).map_err(|e| Error::invalid(format!("tensor {name}: {e}")))?;
        views.push((name.as_str(), view));
    }
    safetensors::serialize(views, Some(metadata))
        .map_err(|e| Error::invalid(format!("could not serialise the tensors: {e}")))
}

/// Tensor data to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

/// Bytes of the same file with another card; tensors are unchanged to the last bit.
pub fn with_card(name: &str, bytes: &[u8], card: &ModelCard) -> Result<Vec<u8>> {
    let malformed = |e: safetensors::SafeTensorError| Error::model(name, e.to_string());
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).map_err(malformed)?;
    let file = safetensors::SafeTensors::deserialize(bytes).map_err(malformed)?;
    let mut metadata = header.metadata().clone().unwrap_or_default();
    let json = serde_json::to_string(card)
        .map_err(|e| Error::invalid(format!("could not serialise the model description: {e}")))?;
    metadata.insert(KEY.to_string(), json);
    safetensors::serialize(file.iter(), Some(metadata))
        .map_err(|e| Error::invalid(format!("could not serialise the tensors: {e}")))
}

/// Bytes of a model file.
pub fn serialize(card: &ModelCard, tensors: &BTreeMap<String, (Vec<usize>, Data)>) -> Result<Vec<u8>> {
    let json = serde_json::to_string(card)
        .map_err(|e| Error::invalid(format!("could not serialise the model description: {e}")))?;
    write_tensors(tensors, HashMap::from([(KEY.to_string(), json)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_widened() {
        let half = [0x3c00u16, 0xb555, 0x7bff, 0x0001].map(u16::to_le_bytes).concat();
        let bfloat16 = [0x3f80u16, 0xc049].map(u16::to_le_bytes).concat();
        let views = [
            ("f16", TensorView::new(Dtype::F16, vec![4], &half).unwrap()),
            ("bf16", TensorView::new(Dtype::BF16, vec![2], &bfloat16).unwrap()),
            ("bool", TensorView::new(Dtype::BOOL, vec![3], &[1, 0, 1]).unwrap()),
        ];
        let bytes = safetensors::serialize(views, None).unwrap();
        let tensors = read_tensors("memory", &bytes).unwrap().0;
        assert_eq!(tensors["f16"].data, [1.0, -0.333251953125, 65504.0, 2f64.powi(-24)]);
        assert_eq!(tensors["bf16"].data, [1.0, -3.140625]);
        assert_eq!(tensors["bool"].data, [1.0, 0.0, 1.0]);
        let message = read_tensors("memory", &bytes[..bytes.len() - 1]).unwrap_err().to_string();
        assert!(message.contains("the file is truncated or corrupt, so copy it again"), "{message}");
        for (length, said) in [(0, "the file is empty"), (8, "ends within its header"), (20, "ends within its header")]
        {
            let message = read_tensors("memory", &bytes[..length]).unwrap_err().to_string();
            assert!(message.contains(said), "{message}");
        }
    }
}
