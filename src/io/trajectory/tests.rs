use super::*;
use crate::coordinates::cell::are_alike;
use crate::coordinates::whole::BoxVectors;
use crate::io::gromacs::trr;

#[test]
fn every_format_gives_the_frames_back() {
    let folder = std::env::temp_dir().join(format!("modejump-trajectory-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let frames = Frames::new(36, (0..36 * 7).map(|i| 0.37 * (0.61 * f64::from(i)).sin()).collect());
    let topology = Topology {
        names: (0..12).map(|i| format!("C{i}")).collect(),
        elements: vec!["C".into(); 12],
        residues: vec!["LIG1".into(); 12],
        bonds: vec![],
    };
    for (extension, tolerance) in [
        ("pdb", 5.1e-5),
        ("gro", 5.1e-4),
        ("dcd", 1e-7),
        ("xtc", 6e-6),
        ("trr", 0.0),
        ("npy", 0.0),
        ("safetensors", 0.0),
    ] {
        let path = folder.join(format!("frames.{extension}"));
        write(&path, &frames, Some(&topology), &[]).unwrap();
        let back = read(&path).unwrap();
        assert_eq!(back.dimension, 36, "{extension}");
        assert_eq!(back.n(), 7, "{extension}");
        let error = frames.x.iter().zip(&back.x).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error <= tolerance, "{extension}: {error}");
        // a file cut short is an error or has fewer frames, never a panic
        let bytes = std::fs::read(&path).unwrap();
        for cut in [0, 1, 10, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            if let Ok(cut) = read(&path) {
                assert!(cut.n() <= 7);
            }
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Sizes claimed by a header that exceed the file.
#[test]
fn no_memory_is_taken_for_what_is_not_there() {
    let folder = std::env::temp_dir().join(format!("modejump-hostile-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("frames.npy");
    write(&path, &Frames::new(3, vec![0.5; 6]), None, &[]).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let shape = bytes.windows(9).position(|w| w == b"(2, 1, 3)").expect("a shape");
    bytes[shape..shape + 28].copy_from_slice(b"(1000000000, 22, 1000000), }");
    std::fs::write(&path, &bytes).unwrap();
    assert!(read(&path).is_err());
    // no data at all, with a size that overflows
    for claimed in
        [b"(0, 9223372036854775, 3), }  ", b"(0, 6148914691236517206, 3),}", b"(0, 18446744073709551615),}  "]
    {
        bytes[shape..shape + 29].copy_from_slice(claimed);
        std::fs::write(&path, &bytes[..bytes.len() - 48]).unwrap();
        assert!(read(&path).map_or(true, |frames| frames.n() == 0), "{}", String::from_utf8_lossy(claimed));
    }

    let path = folder.join("frames.xtc");
    let frames = Frames::new(36, (0..36).map(f64::from).collect());
    write(&path, &frames, None, &[]).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    // the number of atoms is stored twice
    for place in [4, 52] {
        assert_eq!(bytes[place..place + 4], 12i32.to_be_bytes());
        bytes[place..place + 4].copy_from_slice(&i32::MAX.to_be_bytes());
    }
    std::fs::write(&path, &bytes).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("too few for 2147483647 atoms"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn numbers_of_other_types_are_told_how_to_be_saved() {
    use ndarray_npy::WriteNpyExt;
    let path = std::env::temp_dir().join(format!("modejump-integers-{}.npy", std::process::id()));
    let mut bytes = Vec::new();
    ndarray::arr2(&[[1i64, 2, 3]]).write_npy(&mut bytes).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("little-endian float32 or float64"));
    let descriptor = bytes.windows(3).position(|w| w == b"<i8").expect("a type");
    bytes[descriptor..descriptor + 3].copy_from_slice(b">f8");
    std::fs::write(&path, &bytes).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("little-endian float32 or float64"));
    std::fs::remove_file(&path).unwrap();
}

/// Columns have a fixed width, which written values must not overflow.
#[test]
fn names_and_numbers_stay_in_their_columns() {
    let folder = std::env::temp_dir().join(format!("modejump-columns-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut frames = Frames::new(9, [0.25, -99.9, 999.9].repeat(3));
    let own = |names: [&str; 3]| names.map(String::from).to_vec();
    let mut topology = Topology {
        names: own(["C", "HH31", "O"]),
        elements: own(["C", "H", "O"]),
        residues: own(["NALA1", "ALA123456", "1PE123"]),
        bonds: vec![],
    };
    for (extension, residues) in [("pdb", ["NALA1", "ALA3456", "1PE123"]), ("gro", ["NALA1", "ALA23456", "1PE123"])] {
        let path = folder.join(format!("frames.{extension}"));
        write(&path, &frames, Some(&topology), &[]).unwrap();
        let back = read_of(&path, &topology, "topology").unwrap();
        assert!(frames.x.iter().zip(&back.x).all(|(a, b)| (a - b).abs() < 1e-9), "{extension}: {:?}", back.x);
        let names = match extension {
            "pdb" => Topology::from_pdb(&path).unwrap().0,
            _ => gro::names(&std::fs::read_to_string(&path).unwrap()),
        };
        assert_eq!((names.residues, names.names), (own(residues), topology.names.clone()), "{extension}");
        frames.x[4] = -1000.0;
        let message = write(&path, &frames, Some(&topology), &[]).unwrap_err().to_string();
        assert!(message.contains("frame 1: ALA123456:HH31 (atom 2)") && message.contains("use dcd"), "{message}");
        frames.x[4] = -99.9;
        topology.names[2] = "O12345".into();
        let message = check(&path, 9, Some(&topology)).unwrap_err().to_string();
        assert!(message.contains("1PE123:O12345 (atom 3)"), "{message}");
        topology.names[2] = "O".into();
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn formats_with_times_have_those_of_the_clock() {
    let folder = std::env::temp_dir().join(format!("modejump-times-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let frames = Frames::new(36, (0..36 * 3).map(|i| (0.61 * f64::from(i)).sin()).collect());
    let steps = [50, 100, 120];
    for (clock, expected, between) in [
        (Clock { steps: &steps, timestep: 0.002 }, [(50, 0.1), (100, 0.2), (120, 0.24)], 50),
        (Clock::default(), [(0, 0.0), (1, 1.0), (2, 2.0)], 1),
    ] {
        let path = |extension: &str| folder.join(format!("frames.{extension}"));
        let written = |extension: &str| {
            write_timed(&path(extension), &frames, clock, None, &[]).unwrap();
            std::fs::read(path(extension)).unwrap()
        };
        let mut times: Vec<(i64, f64)> =
            trr::read(&written("trr")).unwrap().iter().map(|f| (i64::from(f.step), f.time)).collect();
        let mut reader = molly::XTCReader::new(std::io::Cursor::new(written("xtc")));
        for _ in 0..3 {
            let mut frame = molly::Frame::default();
            reader.read_frame(&mut frame).unwrap();
            times.push((i64::from(frame.step), f64::from(frame.time)));
        }
        for ((step, time), (expected, ps)) in times.iter().zip(expected.iter().cycle()) {
            assert!(step == expected && (time - ps).abs() < 1e-6, "{times:?}");
        }
        let dcd = written("dcd");
        let int = |k: usize| u32::from_le_bytes(dcd[4 + 4 * k..8 + 4 * k].try_into().unwrap());
        assert_eq!([int(1), int(2), int(3)], [3, expected[0].0 as u32, between]);
        let timestep = f64::from(f32::from_bits(int(10))) * 0.04888821;
        assert!((timestep - clock.timestep).abs() < 1e-6, "{timestep}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Boxes in each format, and the frames are recovered.
#[test]
fn boxes_are_where_other_programs_look_for_them() {
    let folder = std::env::temp_dir().join(format!("modejump-boxes-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let frames = Frames::new(36, (0..36 * 2).map(|i| (0.61 * f64::from(i)).sin()).collect());
    let topology = Topology {
        names: (0..12).map(|i| format!("C{i}")).collect(),
        elements: vec!["C".into(); 12],
        residues: vec!["LIG1".into(); 12],
        bonds: vec![],
    };
    let written = |extension: &str, boxes: &[BoxVectors]| {
        let path = folder.join(format!("frames.{extension}"));
        let frames = Frames { boxes: boxes.to_vec(), ..frames.clone() };
        write_timed(&path, &frames, Clock::default(), Some(&topology), &[]).unwrap();
        let back = read(&path).unwrap();
        let expected = if extension == "npy" { &[][..] } else { boxes };
        let same = |(a, b): (&BoxVectors, &BoxVectors)| are_alike(a, b, 1e-4);
        assert!(back.boxes.len() == expected.len() && back.boxes.iter().zip(expected).all(same), "{:?}", back.boxes);
        let error = frames.x.iter().zip(&back.x).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(back.x.len() == frames.x.len() && error <= 5.1e-4, "{extension}: {error}");
        std::fs::read(&path).unwrap()
    };
    let right = [[2.5, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.5]];
    // a and b at 60 degrees, the others at right angles
    let hexagonal = [[2.0, 0.0, 0.0], [1.0, 3f64.sqrt(), 0.0], [0.0, 0.0, 4.0]];

    let cells = [
        "CRYST1   25.000   30.000   35.000  90.00  90.00  90.00 P 1           1 \n",
        "CRYST1   20.000   20.000   40.000  90.00  90.00  60.00 P 1           1 \n",
    ];
    let pdb = |boxes: &[BoxVectors]| String::from_utf8(written("pdb", boxes)).unwrap();
    let bare = pdb(&[]);
    assert!(!bare.contains("CRYST1"));
    assert_eq!(pdb(&[hexagonal; 2]), cells[1].to_string() + &bare);
    let [first, second] = ["MODEL        1\n", "MODEL        2\n"];
    let of_each = bare.replace(first, &[cells[0], first, cells[0]].concat());
    assert_eq!(pdb(&[right, hexagonal]), of_each.replace(second, &[second, cells[1]].concat()));
    let path = folder.join("frames.pdb");
    assert!(are_alike(&read_box(&path).unwrap().unwrap(), &right, 1e-12));

    let gro = String::from_utf8(written("gro", &[right, hexagonal])).unwrap();
    let lines: Vec<&str> = gro.lines().skip(14).step_by(15).collect();
    let of_hexagonal = "   2.00000   1.73205   4.00000   0.00000   0.00000   1.00000   0.00000   0.00000   0.00000";
    assert_eq!(lines, ["   2.50000   3.00000   3.50000", of_hexagonal]);

    let (dcd, bare) = (written("dcd", &[right, hexagonal]), written("dcd", &[]));
    let record = |at: usize| {
        assert_eq!([at, at + 52].map(|at| dcd[at..at + 4].to_vec()), [48u32; 2].map(|v| v.to_le_bytes().to_vec()));
        [0, 8, 16, 24, 32, 40].map(|k| f64::from_le_bytes(std::array::from_fn(|i| dcd[at + 4 + k + i])))
    };
    // the headers are an atom count, a title and 84 bytes of numbers, each with its length before and after
    let (head, frame) = (12 + 92 + 92, 3 * (8 + 4 * 12));
    assert_eq!((dcd[48], bare[48], dcd.len() - bare.len()), (1, 0, 2 * 56), "ICNTRL(11) says that there is a cell");
    assert_eq!(record(head), [25.0, 0.0, 30.0, 0.0, 0.0, 35.0]);
    let error =
        record(head + 56 + frame).into_iter().zip([20.0, 0.5, 20.0, 0.0, 0.0, 40.0]).map(|(a, b)| (a - b).abs());
    assert!(error.fold(0.0, f64::max) < 1e-12);

    let boxes: Vec<_> =
        trr::read(&written("trr", &[right, hexagonal])).unwrap().iter().map(|f| f.box_vectors).collect();
    assert_eq!(boxes, [Some(right), Some(hexagonal)]);
    let mut reader = molly::XTCReader::new(std::io::Cursor::new(written("xtc", &[right, hexagonal])));
    for vectors in [right, hexagonal] {
        let mut frame = molly::Frame::default();
        reader.read_frame(&mut frame).unwrap();
        assert_eq!(frame.boxvec_cols_2d(), vectors.map(|v| v.map(|v| v as f32)));
    }
    written("safetensors", &[right, hexagonal]);
    let (mut tensors, _) = model_file::open_tensors(&folder.join("frames.safetensors")).unwrap();
    let tensor = tensors.remove("box").unwrap();
    assert_eq!((tensor.shape, tensor.data), (vec![2, 3, 3], [right, hexagonal].concat().concat()));
    written("npy", &[right, hexagonal]);

    let refused = |extension: &str, boxes: &[BoxVectors]| {
        let path = folder.join(format!("refused.{extension}"));
        let frames = Frames { boxes: boxes.to_vec(), ..frames.clone() };
        write_timed(&path, &frames, Clock::default(), Some(&topology), &[]).unwrap_err().to_string()
    };
    assert!(refused("dcd", &[right]).ends_with("1 boxes for 2 frames"));
    let large = right.map(|v| v.map(|v| 1e4 * v));
    let message = refused("pdb", &[right, large]);
    assert!(message.contains("frame 2: a box of 25000.000 × 30000.000 × 35000.000 nm") && message.contains("use dcd"));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Molecules are made whole by the box of their frame, and only if that makes all bonds possible.
#[test]
fn molecules_that_a_box_cuts_are_made_whole() {
    let topology = Topology {
        names: vec!["C".into(); 3],
        elements: vec!["C".into(); 3],
        residues: vec!["LIG1".into(); 3],
        bonds: vec![[0, 1], [1, 2]],
    };
    let whole = [1.9, 0.5, 0.5, 2.02, 0.5, 0.5, 2.14, 0.5, 0.5];
    let cut = [1.9, 0.5, 0.5, 0.02, 0.5, 0.5, 0.14, 0.5, 0.5];
    let torn = [1.9, 0.5, 0.5, 0.02, 0.5, 0.5, 0.14, 1.2, 0.5];
    let cube = |a: f64| [[a, 0.0, 0.0], [0.0, a, 0.0], [0.0, 0.0, a]];
    let boxes = vec![cube(2.0), cube(2.0), cube(2.0), cube(2.5), [[0.0; 3]; 3]];
    let mut frames = Frames { boxes, ..Frames::new(9, [whole, cut, torn, cut, cut].concat()) };
    assert_eq!(make_whole(&mut frames, &topology), 1);
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
    let rows: Vec<&[f64]> = frames.x.chunks_exact(9).collect();
    assert_eq!([rows[0], rows[2], rows[3], rows[4]], [whole, torn, cut, cut].map(|x| x.to_vec()));
    assert!(close(rows[1], &whole), "{:?}", rows[1]);
    assert_eq!(torn_frames(&frames, &topology, "topology").unwrap().frames, 3);
    // without boxes, or a path along bonds to each atom, nothing can be done
    let bonds = vec![[0, 1]];
    assert_eq!(make_whole(&mut Frames::new(9, cut.to_vec()), &topology), 0);
    assert_eq!(
        make_whole(
            &mut Frames { boxes: vec![cube(2.0)], ..Frames::new(9, cut.to_vec()) },
            &Topology { bonds, ..topology }
        ),
        0
    );
}

/// The format uses a box of 1 Å for structures without a crystal.
#[test]
fn a_box_of_nothing_is_none() {
    let path = std::env::temp_dir().join(format!("modejump-box-{}.pdb", std::process::id()));
    let of = |line: &str| {
        std::fs::write(&path, format!("HEADER\n{line}\nEND\n")).unwrap();
        read_box(&path).unwrap()
    };
    let [[a, ..], [x, y, _], [.., c]] = of("CRYST1   20.000   20.000   40.000  90.00  90.00 120.00").unwrap();
    assert!([a - 2.0, x + 1.0, y - 3f64.sqrt(), c - 4.0].iter().all(|error| error.abs() < 1e-12));
    for none in [
        "REMARK",
        "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1 ",
        "CRYST1    0.000    0.000    0.000  90.00  90.00  90.00 P 1           1 ",
        "CRYST1   20.000   20.000   40.000",
    ] {
        assert_eq!(of(none), None, "{none}");
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn coordinates_that_are_no_atoms_are_refused_by_formats_of_atoms() {
    let frames = Frames::new(2, vec![0.5; 6]);
    for extension in ["pdb", "gro", "dcd", "xtc", "trr"] {
        let path = std::env::temp_dir().join(format!("modejump-no-atoms-{}.{extension}", std::process::id()));
        let message = write(&path, &frames, None, &[]).unwrap_err().to_string();
        assert!(message.ends_with("found 2 coordinates; use npy or safetensors"), "{message}");
        assert!(!path.exists());
    }
}

#[test]
fn an_unknown_extension_is_named() {
    let error = read(Path::new("frames.mdcrd")).unwrap_err().to_string();
    assert!(error.contains("mdcrd") && error.contains("xtc"), "{error}");
}
