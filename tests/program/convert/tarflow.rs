//! TarFlows of one molecule.

use super::boltznce::FIELD;
use super::{convert, log_density, only_one_hand_has_a_density, refusal};
use crate::command::{folder, largest_difference, modejump, tensors, Run, TOPOLOGY};
use modejump::density::Scope;
use modejump::models::{load_with, Precision};

pub const TARFLOW: &str = "tests/golden/sbg/tarflow_small/state_f32.safetensors";
const TARFLOW_VALUES: &str = "tests/golden/sbg/tarflow_small/io_f64.safetensors";

#[test]
fn a_converted_tarflow_gives_the_reference_values() {
    let folder = folder("convert-tarflow");
    let temperature = ["--temperature", "300"]; // the configurations are random ones, of any hand
    let golden = tensors(TARFLOW_VALUES);
    // in the network's units and without noise of the centroid it is the reference's log q
    let plain = r#"{ "std": 1.0, "com_augmentation": false }"#;
    let model = convert(&folder, "tarflow", TARFLOW, plain, &temperature);
    let flow = load_with(&model, Precision::F64).unwrap();
    let log_q = log_density(flow.as_ref(), &golden["x"].data);
    assert!(largest_difference(&log_q, &golden["log_q"].data) < 1e-11);
    // in nm and relative to the noise it differs by the change of units and by the density of the centroid
    let model = convert(&folder, "tarflow", TARFLOW, r#"{ "std": 0.16 }"#, &temperature);
    let flow = load_with(&model, Precision::F64).unwrap();
    let sigma = 0.16 / 22f64.sqrt();
    assert!(matches!(flow.scope(), Scope::Noisy { sigma: s } if (s - sigma).abs() < 1e-15));
    let x: Vec<f64> = golden["x"].data.iter().map(|x| 0.16 * x).collect();
    for (row, (found, plain)) in log_density(flow.as_ref(), &x).iter().zip(&log_q).enumerate() {
        let c = modejump::coordinates::vector::centroid(&x[66 * row..66 * (row + 1)]);
        let squared = c.iter().map(|c| c * c).sum::<f64>() / (sigma * sigma);
        let normal = -0.5 * squared - 1.5 * (2.0 * std::f64::consts::PI * sigma * sigma).ln();
        let expected = plain - 66.0 * 0.16f64.ln() - normal + 1.5 * 22f64.ln();
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }
    let model = convert(&folder, "tarflow", TARFLOW, plain, &["--topology", TOPOLOGY]);
    only_one_hand_has_a_density(&model, TOPOLOGY);
}

#[test]
fn what_a_tarflow_lacks_or_contradicts_is_said() {
    let folder = folder("convert-tarflow-missing");
    let complain = |config: &str| refusal(&folder, "tarflow", TARFLOW, config, &[]);
    assert!(complain("{}").contains("std: standard deviation"));
    let message = refusal(&folder, "tarflow", TARFLOW, r#"{ "std": 0.16 }"#, &["--std", "0.2"]);
    assert!(message.contains("--std 0.2 does not match `std` of --config, which is 0.16"), "{message}");
    assert!(complain(r#"{ "std": 0.16, "channels": 256 }"#).contains("channels = 256"));
    assert!(complain(r#"{ "std": 0.16, "head_dim": 48 }"#).contains("the head size 48"));
    for size in ["16.0", "\"16\"", "-16", "0"] {
        let message = complain(&format!(r#"{{ "std": 0.16, "head_dim": {size} }}"#));
        assert!(message.contains(&format!("head_dim: expected a positive integer, found {size}")), "{message}");
    }
    assert!(complain(r#"{ "std": 0.16, "com_augmentation": 0 }"#).contains("com_augmentation: expected true or false"));
    // a misspelt key is named, and so is what is assumed, and what it means
    let config = folder.join("misspelt.json");
    std::fs::write(&config, r#"{ "std": 0.16, "head_size": 16, "com_augmentation": false }"#).unwrap();
    let output = folder.join("assumed.safetensors");
    let mut command = modejump(&["convert", TARFLOW, "--kind", "tarflow", "--config"]);
    let [_, text] = command.arg(config).arg("-o").arg(output).texts();
    assert!(text.contains("assuming attention heads of 64 columns"), "{text}");
    assert!(text.contains("the density includes the position"), "{text}");
    let known = text.split("known options: ").nth(1).unwrap().lines().next().unwrap();
    let mut keys: Vec<&str> = known.split(", ").collect();
    let n = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), n, "named twice: {known}");
    assert!(
        text.contains("ignored options: head_size") && text.contains("handedness of stereocentres is unknown"),
        "{text}"
    );
    let message = complain(r#"{ "std": 0.16, "permutation_keys": ["n2c_residue-by-residue_standard"] }"#);
    assert!(message.contains("a TarFlow with permutations requires the residues of its atoms"), "{message}");
    assert!(complain(r#"{ "std": 0 }"#).contains("std: expected a positive number"));
    let message = refusal(&folder, "tarflow", FIELD, r#"{ "std": 0.16 }"#, &[]);
    assert!(message.contains("no single-system TarFlow"), "{message}");
    // what is converted already would become another density
    let own = "models/ala2/model.safetensors";
    let message = refusal(&folder, "tarflow", own, r#"{ "std": 0.16 }"#, &[]);
    assert!(message.contains("already a modejump model file"), "{message}");
    let other = ["--topology", "tests/golden/openmm/peroxide.pdb"];
    refusal(&folder, "tarflow", TARFLOW, r#"{ "std": 0.16 }"#, &other);
}
