use super::*;
use std::path::PathBuf;

fn file(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pytorch").join(name)).unwrap()
}

/// A zip archive of these entries, uncompressed.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write;
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, data) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Reads a file with this pickle and one storage `0` of eight bytes.
fn with_pickle(pickle: &[u8]) -> Outcome<Contents> {
    read(&zip(&[("m/data.pkl", pickle), ("m/data/0", &[0; 8])]))
}

#[test]
fn every_type_and_every_view_is_read() {
    for name in ["types.pt", "types-protocol4.pt"] {
        let tensors = read_tensors(name, &file(name)).unwrap().tensors;
        let check = |key: &str, shape: &[usize], data: &[f64]| {
            let tensor = tensors.get(key).unwrap_or_else(|| panic!("{name}: no {key}"));
            assert_eq!((&tensor.shape[..], &tensor.data[..]), (shape, data), "{name}: {key}");
        };
        let rising: Vec<f64> = (0..12).map(f64::from).collect();
        check("state_dict.net.0.weight", &[3, 4], &rising);
        check("state_dict.transposed", &[4, 3], &[0.0, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0]);
        check("state_dict.column", &[3], &[1.0, 5.0, 9.0]);
        check("state_dict.expanded", &[2, 2], &[5.0, 6.0, 5.0, 6.0]);
        check("state_dict.scalar", &[], &[11.0]);
        check("state_dict.empty", &[0, 4], &[]);
        check("state_dict.f64", &[2], &[0.1, -2.5e300]);
        check("state_dict.f16", &[4], &[1.0, -0.333251953125, 65504.0, 2f64.powi(-24)]);
        check("state_dict.bf16", &[2], &[1.0, -3.140625]);
        check("state_dict.i64", &[2], &[-(2f64.powi(40)), 3.0]);
        check("state_dict.i32", &[2], &[-7.0, 2147483647.0]);
        check("state_dict.u8", &[2], &[0.0, 255.0]);
        check("state_dict.bool", &[2], &[1.0, 0.0]);
        check("optimizer.state.0.exp_avg", &[2], &[4.0, 5.0]);
        check("list.1", &[1], &[8.0]);
        check("hyper.inner", &[1], &[9.0]);
        assert_eq!(tensors.len(), 16, "{name}: {:?}", tensors.keys());
    }
}

#[test]
fn a_hostile_file_executes_nothing() {
    // Python would run `touch modejump-was-executed`
    let bytes = file("hostile.pt");
    let is_there = |text: &[u8]| bytes.windows(text.len()).any(|w| w == text);
    assert!(is_there(b"system") && is_there(b"touch modejump-was-executed"));
    let tensors = read_tensors("hostile.pt", &bytes).unwrap().tensors;
    assert_eq!(
        tensors.into_iter().collect::<Vec<_>>(),
        [("weight".into(), Tensor { shape: vec![1], data: vec![1.5] })]
    );
    assert!(!std::path::Path::new("modejump-was-executed").exists());
    // the result of a call is represented by its name
    let pickle = pickle::parse(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.").unwrap();
    assert!(matches!(&pickle.nodes[pickle.root], Node::Object(object) if object.class.as_ref() == "posix.system"));
}

/// Memory for a call does not grow with its arguments, which many calls may share.
#[test]
fn long_arguments_are_not_copied() {
    let mut tuple = b"\x80\x02(".to_vec();
    tuple.extend(b"K\x01".repeat(100));
    tuple.extend(b"tq\x00");
    // 1000 calls of one function with the tuple, and a tensor of 100 dimensions
    let calls = [&tuple[..], b"0ca\nb\nq\x010(", &b"h\x01h\x00R".repeat(1000), b"t."].concat();
    let pickle = pickle::parse(&calls).unwrap();
    assert!(matches!(&pickle.nodes[pickle.root], Node::Tuple(objects) if objects.len() == 1000));
    let storage = b"(X\x07\x00\x00\x00storageca\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ";
    let tensor = [&tuple[..], b"0ctorch._utils\n_rebuild_tensor_v2\n(", storage, b"K\x00h\x00h\x00tR."].concat();
    assert!(pickle::parse(&tensor).unwrap_err().contains("100 dimensions"));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = file("types.pt");
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "{length} of {} bytes were taken for a file", bytes.len());
    }
}

#[test]
fn flipped_bits_never_panic_and_never_change_a_number() {
    let bytes = file("types.pt");
    let sound = read(&bytes).unwrap();
    for i in 0..bytes.len() {
        for bit in [0x01, 0x10, 0x80] {
            let mut damaged = bytes.clone();
            damaged[i] ^= bit;
            // files that can still be read were damaged outside the checked contents
            if let Ok(tensors) = read(&damaged) {
                assert!(tensors == sound, "bit {bit:#04x} of byte {i} changed a tensor");
            }
        }
    }
}

#[test]
fn damaged_pickles_never_panic() {
    // damage behind the archive's checksum: in the pickle itself
    let mut archive = ZipArchive::new(Cursor::new(file("types.pt"))).unwrap();
    let mut pickle = Vec::new();
    archive.by_name("types/data.pkl").unwrap().read_to_end(&mut pickle).unwrap();
    let sound = pickle::parse(&pickle).unwrap().nodes;
    let mut refused = 0;
    for i in 0..pickle.len() {
        assert!(pickle::parse(&pickle[..i]).is_err(), "{i} bytes");
        for value in (0..=255).step_by(3) {
            let mut damaged = pickle.clone();
            damaged[i] = value;
            refused += usize::from(with_pickle(&damaged).is_err());
        }
    }
    assert!(sound.len() > 100 && refused > pickle.len());
}

/// A tensor of storage `0` with this offset, shape and stride, as an entry `t` of a dictionary.
fn tensor(class: &str, offset: i32, shape: [i32; 2], stride: [i32; 2]) -> Vec<u8> {
    let int = |v: i32| [&b"J"[..], &v.to_le_bytes()].concat();
    let pair = |v: [i32; 2]| [int(v[0]), int(v[1]), b"\x86".to_vec()].concat();
    let text = |t: &str| [&b"X"[..], &(t.len() as u32).to_le_bytes(), t.as_bytes()].concat();
    let class = format!("ctorch\n{class}\n");
    let storage =
        [b"(".to_vec(), text("storage"), class.into(), text("0"), text("cpu"), int(2), b"tQ".to_vec()].concat();
    let call = b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec();
    [b"\x80\x02}".to_vec(), text("t"), call, storage, int(offset), pair(shape), pair(stride), b"\x89NtRs.".to_vec()]
        .concat()
}

#[test]
fn small_integers_have_signs() {
    for (class, bytes) in [("CharStorage", &b"\xff\x02"[..]), ("ShortStorage", b"\xff\xff\x02\x00")] {
        let read = read(&zip(&[("m/data.pkl", &tensor(class, 0, [1, 2], [2, 1])), ("m/data/0", bytes)])).unwrap();
        assert_eq!(read.tensors["t"].data, [-1.0, 2.0], "{class}");
    }
}

/// Complex numbers of rotary embeddings, which appear among a network's tensors.
#[test]
fn complex_numbers_are_read_as_their_parts() {
    let bytes: Vec<u8> = [1.0_f32, -2.0, 3.0, 4.0].iter().flat_map(|part| part.to_le_bytes()).collect();
    let pickle = tensor("ComplexFloatStorage", 0, [2, 1], [1, 1]);
    let read = read(&zip(&[("m/data.pkl", &pickle), ("m/data/0", &bytes)])).unwrap();
    assert_eq!(
        (&read.tensors["t"].shape[..], &read.tensors["t"].data[..]),
        (&[2, 1, 2][..], &[1.0, -2.0, 3.0, 4.0][..])
    );
}

#[test]
fn views_beyond_their_storage_and_unknown_types_are_refused_by_name() {
    assert_eq!(with_pickle(&tensor("FloatStorage", 0, [1, 2], [2, 1])).unwrap().tensors["t"].data, [0.0, 0.0]);
    for (pickle, reason) in [
        (tensor("FloatStorage", 1, [1, 2], [2, 1]), "exceed the storage of 2 numbers"),
        (tensor("FloatStorage", 0, [2, 2], [i32::MAX, i32::MAX]), "exceed the storage"),
        (tensor("FloatStorage", 0, [i32::MAX, i32::MAX], [0, 0]), "too large for the file"),
        (tensor("FloatStorage", -1, [1, 1], [1, 1]), "size, stride or offset -1"),
        (tensor("ComplexFloatStorage", 1, [1, 1], [1, 1]), "offset 2, shape [1, 1, 2], stride [2, 2, 1] exceed"),
        (tensor("ComplexFloatStorage", i32::MAX, [1, 1], [i32::MAX, i32::MAX]), "exceed the storage"),
        (tensor("QInt8Storage", 0, [1, 1], [1, 1]), "type QInt8Storage"),
        (b"\x80\x02I1\n.".to_vec(), "byte 2: instruction 0x49"),
        (b"\x80\x09.".to_vec(), "protocol 9"),
        (b"\x80\x02}.".to_vec(), "contains a dictionary but no tensors"),
        (b"\x80\x02h\x05.".to_vec(), "memo 5 is not set"),
        (b"\x80\x02X\xff\xff\xff\xffabc.".to_vec(), "byte 2: the pickle is truncated"),
    ] {
        let message = with_pickle(&pickle).unwrap_err();
        assert!(message.contains(reason), "{message}");
    }
}

/// Lightning's `save_hyperparameters` with OmegaConf: each entry refers back to its container.
#[test]
fn tensors_beside_containers_that_refer_back_are_read() {
    let of_tensor = tensor("FloatStorage", 0, [1, 2], [2, 1]);
    // {"t": the tensor, "l": [l, l]}
    let cyclic = b"X\x01\x00\x00\x00l]q\x07h\x07ah\x07as.";
    let read = with_pickle(&[&of_tensor[..of_tensor.len() - 1], cyclic].concat()).unwrap();
    assert!(read.tensors.keys().eq(["t"]), "{:?}", read.tensors.keys());
}

#[test]
fn cycles_and_exponential_sharing_end_in_an_error() {
    // l = []; l.append(l)
    assert!(with_pickle(b"\x80\x02]q\x00h\x00a.").unwrap_err().contains("no tensors"));
    // forty levels of [previous, previous], without a tensor and with one
    let levels = |first: &[u8]| {
        let mut pickle = first.to_vec();
        (0..40).for_each(|_| pickle.extend(b"2\x86"));
        pickle.push(b'.');
        with_pickle(&pickle).unwrap_err()
    };
    assert!(levels(b"\x80\x02]").contains("no tensors"));
    let of_tensor = tensor("FloatStorage", 0, [1, 2], [2, 1]);
    assert!(levels(&of_tensor[..of_tensor.len() - 1]).contains("too many containers"));
}

#[test]
fn other_files_are_told_apart() {
    assert!(read(b"").unwrap_err().contains("not a zip archive"));
    assert!(read(&zip(&[("a.txt", b"text")])).unwrap_err().contains("no data.pkl"));
    let big = zip(&[("m/data.pkl", b"\x80\x02N."), ("m/byteorder", b"big")]);
    assert!(read(&big).unwrap_err().contains("byte order `big`"));
    let missing = read(&zip(&[("m/data.pkl", &tensor("FloatStorage", 0, [1, 1], [1, 1]))])).unwrap_err();
    assert!(missing.contains("tensor `t`") && missing.contains("m/data/0"), "{missing}");
}

#[test]
fn a_view_that_negates_is_refused() {
    let message = read_tensors("negated.pt", &file("negated.pt")).unwrap_err().to_string();
    assert!(message.contains("negated or conjugated view"), "{message}");
}

/// A network may not need them.
#[test]
fn tensors_of_kinds_that_are_not_read_are_named() {
    let sparse = b"X\x01\0\0\0wctorch._utils\n_rebuild_sparse_tensor\n)Rs";
    let alone = with_pickle(&[b"\x80\x02}", &sparse[..], b"."].concat()).unwrap_err();
    assert!(alone.contains("tensor `w`: unsupported kind torch._utils._rebuild_sparse_tensor"), "{alone}");
    let numbers = tensor("UInt16Storage", 0, [1, 1], [1, 1]);
    let unknown = with_pickle(&numbers).unwrap_err();
    assert!(unknown.contains("tensor `t`: ") && unknown.contains("UInt16Storage"), "{unknown}");
    // beside one that is read
    let dense = tensor("FloatStorage", 0, [1, 2], [2, 1]);
    let found = with_pickle(&[&dense[..dense.len() - 1], &sparse[..], b"."].concat()).unwrap();
    assert!(found.tensors.keys().eq(["t"]) && found.unread.keys().eq(["w"]), "{found:?}");
}
