//! Tensors of PyTorch files (`.pt`, `.pth`, `.ckpt` of PyTorch 1.6 and later): a zip archive with a pickle, `data.pkl`,
//! and one entry of raw numbers per storage, `data/KEY`. Data only: nothing that the file names is executed.

mod pickle;
#[cfg(test)]
mod tests;

use super::model_file::{bfloat16, half, Tensor};
use crate::error::{Error, Result};
use pickle::{Id, Node, Object, Pickle, Storage, View};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read};
use zip::ZipArchive;

/// First bytes of a zip archive.
pub const MAGIC: [u8; 4] = *b"PK\x03\x04";
/// Real pickles hold only names and shapes; a node takes up to a hundred times its bytes in the file.
const LARGEST_PICKLE: u64 = 1 << 24;
/// Largest nesting depth of containers.
const DEEPEST: usize = 64;
/// Largest number of containers and tensors visited: shared parts could be visited exponentially often.
const MOST_VISITS: usize = 1 << 20;
const LONGEST_NAME: usize = 1024;
/// Prefix of the functions that make tensors; kinds not read here are sparse, quantised and fp8 ones.
const REBUILT: &str = "torch._utils._rebuild_";
/// PyTorch's own limit is 64; no weight has that many, and every view stores its own sizes.
const MOST_DIMENSIONS: usize = 16;
/// Largest number of elements of all tensors together per byte of the file (views can overlap), and its lower bound.
const ELEMENTS_PER_BYTE: usize = 4;
const FEWEST_ELEMENTS: usize = 1 << 20;

/// Contents of a PyTorch file, named by the path to each tensor: `state_dict.net.0.weight`. Elements of lists and tuples
/// are numbered.
#[derive(Debug, Default, PartialEq)]
pub struct Contents {
    pub tensors: BTreeMap<String, Tensor>,
    /// Tensors of unsupported kinds, with the reason.
    pub unread: BTreeMap<String, String>,
}

/// All tensors of a PyTorch file as f64. Supported are f16, bf16, f32, f64, i64, i32, i16, i8, u8 and bool, and complex
/// numbers of f32 and f64, whose parts form a last dimension of 2; others are named, since a network may not need them.
///
/// `name` stands for the path in error messages. Errors: not a zip archive, entries that are compressed, missing or
/// damaged, an unknown pickle instruction, views beyond their storage, no supported tensor; each names the place.
pub fn read_tensors(name: &str, bytes: &[u8]) -> Result<Contents> {
    read(bytes).map_err(|reason| Error::file(name, reason))
}

type Outcome<T> = std::result::Result<T, String>;

fn read(bytes: &[u8]) -> Outcome<Contents> {
    if bytes.get(..4) != Some(&MAGIC[..]) {
        return Err(
            "not a zip archive: not a PyTorch file, or saved before PyTorch 1.6; load it in PyTorch and save it again"
                .into(),
        );
    }
    let archive = ZipArchive::new(Cursor::new(bytes))
        .map_err(|e| format!("not a readable zip archive ({e}): the file is truncated or corrupt, so copy it again"))?;
    let mut archive =
        Archive { archive, bytes_left: bytes.len() as u64, root: String::new(), storages: BTreeMap::new() };
    archive.root = archive.find_root()?;
    archive.check_byte_order()?;
    let pickle = archive.entry("data.pkl", LARGEST_PICKLE)?;
    let pickle = pickle::parse(&pickle).map_err(|reason| format!("data.pkl, {reason}"))?;
    let mut collector = Collector {
        pickle: &pickle,
        archive,
        found: Contents::default(),
        path: BTreeSet::new(),
        barren: BTreeSet::new(),
        visits: 0,
        elements_left: FEWEST_ELEMENTS.max(ELEMENTS_PER_BYTE.saturating_mul(bytes.len())),
    };
    collector.visit(pickle.root, "", 0)?;
    let Contents { tensors, unread } = &collector.found;
    match unread.first_key_value() {
        _ if !tensors.is_empty() => Ok(collector.found),
        Some((name, reason)) => Err(format!("tensor `{name}`: {reason}")),
        None => Err(format!("contains {} but no tensors", describe(&pickle))),
    }
}

fn describe(pickle: &Pickle) -> String {
    match &pickle.nodes[pickle.root] {
        Node::Object(Object { class, .. }) => format!("an object of class {class}"),
        Node::Global(name) => format!("a reference to {name}"),
        Node::Dict(_) => "a dictionary".into(),
        Node::List(_) | Node::Tuple(_) => "a list".into(),
        _ => "a single value".into(),
    }
}

struct Archive<'a> {
    archive: ZipArchive<Cursor<&'a [u8]>>,
    /// Bytes left for storages: together they may not exceed the file.
    bytes_left: u64,
    /// Folder that holds `data.pkl`, with the slash.
    root: String,
    storages: BTreeMap<String, Vec<u8>>,
}

impl Archive<'_> {
    fn find_root(&self) -> Outcome<String> {
        let root =
            |name: &str| name.strip_suffix("data.pkl").filter(|r| r.is_empty() || r.ends_with('/')).map(String::from);
        let mut names = self.archive.file_names().filter_map(|name| name.ok());
        names.find_map(|name| root(&name)).ok_or_else(|| "the archive has no data.pkl: not a PyTorch file".into())
    }

    /// Requires little-endian numbers. Errors: another byte order.
    fn check_byte_order(&mut self) -> Outcome<()> {
        let name = format!("{}byteorder", self.root);
        if self.archive.index_for_name(&name).is_none() {
            return Ok(()); // older than the entry, which came with the first big-endian writers
        }
        match &self.entry("byteorder", 16)?[..] {
            b"little" => Ok(()),
            other => Err(format!(
                "byte order `{}` is not supported: the file must be little-endian",
                String::from_utf8_lossy(other)
            )),
        }
    }

    /// Bytes of an entry, with its checksum verified.
    fn entry(&mut self, name: &str, limit: u64) -> Outcome<Vec<u8>> {
        let full = format!("{}{name}", self.root);
        let file = self.archive.by_name(&full).map_err(|e| format!("entry {full}: {e}"))?;
        if file.size() > limit {
            return Err(format!("entry {full}: {} bytes, expected at most {limit}", file.size()));
        }
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| format!("entry {full}: {e}"))?;
        match bytes.len() as u64 > limit {
            true => Err(format!("entry {full}: expected at most {limit} bytes, found more")),
            false => Ok(bytes),
        }
    }

    fn storage(&mut self, key: &str) -> Outcome<&[u8]> {
        if !self.storages.contains_key(key) {
            let bytes = self.entry(&format!("data/{key}"), self.bytes_left)?;
            self.bytes_left -= bytes.len() as u64;
            self.storages.insert(key.to_string(), bytes);
        }
        Ok(&self.storages[key])
    }
}

struct Collector<'a> {
    pickle: &'a Pickle,
    archive: Archive<'a>,
    found: Contents,
    /// Containers that enclose the current one; back references to them, as in OmegaConf, add nothing new.
    path: BTreeSet<Id>,
    /// Containers known to hold no tensor.
    barren: BTreeSet<Id>,
    visits: usize,
    elements_left: usize,
}

impl Collector<'_> {
    fn visit(&mut self, id: Id, path: &str, depth: usize) -> Outcome<()> {
        self.visits += 1;
        if depth > DEEPEST || self.visits > MOST_VISITS || path.len() > LONGEST_NAME {
            let start: String = path.chars().take(80).collect();
            return Err(format!("`{start}`…: too many containers, too deeply nested or with too long a name"));
        }
        if self.barren.contains(&id) || !self.path.insert(id) {
            return Ok(());
        }
        let found = |Contents { tensors, unread }: &Contents| tensors.len() + unread.len();
        let before = found(&self.found);
        self.look_into(id, path, depth)?;
        self.path.remove(&id);
        if found(&self.found) == before {
            self.barren.insert(id);
        }
        Ok(())
    }

    fn look_into(&mut self, id: Id, path: &str, depth: usize) -> Outcome<()> {
        let pickle = self.pickle;
        match &pickle.nodes[id] {
            Node::Tensor(view) => {
                let view = &view_as_real(view);
                let (width, decode) = match number_type(&view.storage.class) {
                    Ok(known) => known,
                    Err(reason) => {
                        self.found.unread.insert(path.to_string(), reason);
                        return Ok(());
                    }
                };
                let tensor = self.tensor(view, width, decode).map_err(|reason| format!("tensor `{path}`: {reason}"))?;
                if self.found.tensors.insert(path.to_string(), tensor).is_some() {
                    return Err(format!("two tensors are named `{path}`"));
                }
                Ok(())
            }
            Node::List(parts) | Node::Tuple(parts) => self.visit_all(parts, path, depth),
            Node::Dict(items) => self.visit_items(items, path, depth),
            Node::Object(object) if object.class.contains(REBUILT) => {
                let reason = format!("unsupported kind {}: save it as a dense float32 tensor", object.class);
                self.found.unread.insert(path.to_string(), reason);
                Ok(())
            }
            Node::Object(object) => {
                self.visit_all(&object.elements, path, depth)?;
                self.visit_items(&object.items, path, depth)?;
                object.state.map_or(Ok(()), |state| self.visit(state, path, depth + 1))
            }
            _ => Ok(()),
        }
    }

    fn visit_all(&mut self, parts: &[Id], path: &str, depth: usize) -> Outcome<()> {
        parts.iter().enumerate().try_for_each(|(i, &part)| self.visit(part, &join(path, &i.to_string()), depth + 1))
    }

    fn visit_items(&mut self, items: &[(Id, Id)], path: &str, depth: usize) -> Outcome<()> {
        for (i, &(key, value)) in items.iter().enumerate() {
            let name = match &self.pickle.nodes[key] {
                Node::Text(text) => text.to_string(),
                Node::Int(number) => number.to_string(),
                _ => format!("<{i}>"),
            };
            self.visit(value, &join(path, &name), depth + 1)?;
        }
        Ok(())
    }

    fn tensor(&mut self, view: &View, width: usize, decode: Decode) -> Outcome<Tensor> {
        if view.shape.len() > MOST_DIMENSIONS {
            return Err(format!("{} dimensions are not supported", view.shape.len()));
        }
        let n = view.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let n = n
            .filter(|&n| n <= self.elements_left)
            .ok_or(format!("shape {:?} is too large for the file", view.shape))?;
        self.elements_left -= n;
        let bytes = self.archive.storage(&view.storage.key)?;
        let available = bytes.len() / width;
        let last = view.shape.iter().zip(&view.stride).try_fold(view.offset, |last, (&size, &stride)| {
            size.saturating_sub(1).checked_mul(stride).and_then(|step| last.checked_add(step))
        });
        if n > 0 && last.is_none_or(|last| last >= available) {
            return Err(format!(
                "offset {}, shape {:?}, stride {:?} exceed the storage of {available} numbers",
                view.offset, view.shape, view.stride
            ));
        }
        let mut data = Vec::with_capacity(n);
        let mut index = vec![0usize; view.shape.len()];
        for _ in 0..n {
            let element = view.offset + index.iter().zip(&view.stride).map(|(i, stride)| i * stride).sum::<usize>();
            data.push(decode(&bytes[element * width..][..width]));
            for (i, &size) in index.iter_mut().zip(&view.shape).rev() {
                *i += 1;
                if *i < size {
                    break;
                }
                *i = 0;
            }
        }
        Ok(Tensor { shape: view.shape.clone(), data })
    }
}

/// A view of complex numbers as real and imaginary parts in a last dimension of 2, like PyTorch's function of this
/// name.
fn view_as_real(view: &View) -> View {
    let Some(parts) = view.storage.class.strip_prefix("torch.Complex") else { return view.clone() };
    let storage = Storage { class: parts.into(), key: view.storage.key.clone() };
    View {
        storage: storage.into(),
        offset: view.offset.saturating_mul(2),
        shape: view.shape.iter().copied().chain([2]).collect(),
        stride: view.stride.iter().map(|stride| stride.saturating_mul(2)).chain([1]).collect(),
    }
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_string(),
        _ => format!("{path}.{name}"),
    }
}

type Decode = fn(&[u8]) -> f64;

/// Bytes per number of a storage class, and its decoder.
fn number_type(class: &str) -> Outcome<(usize, Decode)> {
    fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
        std::array::from_fn(|i| bytes[i])
    }
    Ok(match class.strip_prefix("torch.").unwrap_or(class) {
        "DoubleStorage" => (8, |b| f64::from_le_bytes(fixed(b))),
        "FloatStorage" => (4, |b| f64::from(f32::from_le_bytes(fixed(b)))),
        "HalfStorage" => (2, |b| half(u16::from_le_bytes(fixed(b)))),
        "BFloat16Storage" => (2, |b| bfloat16(u16::from_le_bytes(fixed(b)))),
        "LongStorage" => (8, |b| i64::from_le_bytes(fixed(b)) as f64),
        "IntStorage" => (4, |b| f64::from(i32::from_le_bytes(fixed(b)))),
        "ShortStorage" => (2, |b| f64::from(i16::from_le_bytes(fixed(b)))),
        "CharStorage" => (1, |b| f64::from(i8::from_le_bytes(fixed(b)))),
        "ByteStorage" => (1, |b| f64::from(b[0])),
        "BoolStorage" => (1, |b| f64::from(u8::from(b[0] != 0))),
        other => {
            return Err(format!(
                "unsupported number type {other}; known types: f16, bf16, f32, f64, i64, i32, i16, i8, u8, bool"
            ))
        }
    })
}
