//! The fuzz targets on a fixed corpus and on mutations of it, the same in every run. Found crashes go into
//! `fuzz/corpus`.

#[path = "../fuzz/harness.rs"]
mod harness;
#[path = "support/molecule.rs"]
mod molecule;
#[path = "support/networks.rs"]
mod networks;

use modejump::io::model_file::{self, Data};
use modejump::models::modes::IdenticalConfig;
use modejump::models::ModelConfig;
use modejump::rng::{Stream, StreamId};
use std::collections::BTreeMap;
use std::path::Path;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// A few bytes changed, removed, doubled, or the end cut off.
fn mutate(data: &mut Vec<u8>, head: usize, stream: &mut Stream) {
    for _ in 0..1 + stream.below(4) {
        if data.is_empty() {
            return;
        }
        // Mostly in the head, where the structure is.
        let range = if stream.below(4) > 0 { head.min(data.len()) } else { data.len() };
        let at = stream.below(range);
        match stream.below(5) {
            0 => data[at] ^= 1 << stream.below(8),
            1 => data[at] = b"0123456789-.e[]{},:\"nut\0\xff"[stream.below(25)],
            2 => _ = data.remove(at),
            3 => data.insert(at, data[at]),
            _ => data.truncate(at),
        }
    }
}

/// A small model of every kind, and two of coupling flows; modes whose particles are told to be alike.
fn models() -> Vec<Vec<u8>> {
    let coupling = [harness::MODEL.to_vec(), molecule::four_atoms().to_bytes().unwrap(), modes()];
    coupling.into_iter().chain(networks::all().into_iter().map(|(_, bytes)| bytes)).collect()
}

fn modes() -> Vec<u8> {
    let file = model_file::read("modes", harness::MODES).unwrap();
    let (mut card, mut tensors) = (file.card, BTreeMap::new());
    let ModelConfig::Modes(config) = &mut card.model else { panic!("no modes") };
    config.identical = Some(IdenticalConfig { dimension: 1, particles: vec![0, 1] });
    config.modes.iter_mut().for_each(|mode| mode.reference = vec![0.5, -0.5]);
    for (name, tensor) in file.tensors {
        tensors.insert(name, (tensor.shape, Data::F32(tensor.data.iter().map(|&v| v as f32).collect())));
    }
    model_file::serialize(&card, &tensors).unwrap()
}

/// What to start coverage-guided fuzzing from: `cargo test --release --test fuzz_corpus seeds -- --ignored`.
#[test]
#[ignore = "writes the small models into fuzz/corpus"]
fn seeds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/model_loader");
    for (kind, bytes) in networks::all().into_iter().chain([("modes", modes())]) {
        std::fs::write(folder.join(kind), bytes).unwrap();
    }
}

#[test]
fn the_model_loader_survives_its_corpus_and_mutated_models() {
    corpus("model_loader").iter().for_each(|data| harness::model_loader(data));
    for (number, original) in models().iter().enumerate() {
        modejump::models::load_bytes("small model", original).unwrap();
        harness::model_loader(original);
        let head = 8 + u64::from_le_bytes(original[..8].try_into().unwrap()) as usize;
        for round in 0..3000 {
            let mut stream = Stream::new(number as u64, StreamId::Test, round, 0);
            let mut data = original.clone();
            mutate(&mut data, head, &mut stream);
            harness::model_loader(&data);
        }
    }
}

/// Numbers in the description are replaced by extreme ones, the length of the header being kept right.
#[test]
fn the_model_loader_survives_extreme_numbers() {
    let extremes =
        ["0", "1", "-1", "3", "1e308", "-1e308", "1e-320", "4294967296", "18446744073709551615", "null", "[]"];
    for original in models() {
        let length = u64::from_le_bytes(original[..8].try_into().unwrap()) as usize;
        let header = &original[8..8 + length];
        let mut at = 0;
        while at < header.len() {
            let digits = header[at..].iter().take_while(|b| b.is_ascii_digit() || **b == b'.').count();
            if digits > 0 {
                for extreme in extremes {
                    let mut changed = [&header[..at], extreme.as_bytes(), &header[at + digits..]].concat();
                    // safetensors wants a header of a multiple of eight bytes.
                    changed.resize(changed.len().div_ceil(8) * 8, b' ');
                    let data = [&(changed.len() as u64).to_le_bytes()[..], &changed, &original[8 + length..]].concat();
                    harness::model_loader(&data);
                }
            }
            at += digits.max(1);
        }
    }
}

#[test]
fn the_c_functions_survive_null_short_and_strange_arguments() {
    corpus("c_entries").iter().for_each(|data| harness::c_entries(data));
    for round in 0..4000 {
        let mut stream = Stream::new(7, StreamId::Test, round, 0);
        let data: Vec<u8> = (0..600).map(|_| stream.u64() as u8).collect();
        harness::c_entries(&data);
    }
}
