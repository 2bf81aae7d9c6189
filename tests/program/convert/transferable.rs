//! Prose and transferable TarFlows, which are bound to a peptide.

use super::{convert, log_density, only_one_hand_has_a_density, refusal};
use crate::command::{document, folder, modejump, tensor, tensors, write, Run, MODEL, TOPOLOGY};
use modejump::density::Scope;
use modejump::io::model_file::{read_tensors, write_tensors, Data, Tensor};
use modejump::models::{load_with, Precision};
use std::collections::BTreeMap;
use std::path::Path;

pub const PROSE: &str = "tests/golden/sbg/prose_tiny";
const TRANSFERABLE: &str = "tests/golden/sbg/tarflow_transferable_tiny";

/// A PDB file of a peptide of the golden data, its atoms far apart.
pub fn peptide_pdb(folder: &Path, name: &str) -> String {
    let peptides = document(format!("{PROSE}/topologies.json"));
    let mut pdb = String::new();
    for (i, atom) in peptides[name]["atoms"].as_array().unwrap().iter().enumerate() {
        let [residue, atom] = [0, 1].map(|k| atom[k].as_str().unwrap());
        let place = peptides[name]["encodings"]["aa_pos"][i].as_u64().unwrap();
        let x = 5.0 * i as f64;
        pdb += &format!("ATOM  {:>5} {atom:<4} {residue} A{place:>4}    {x:8.3}   0.000   0.000\n", i + 1);
    }
    let path = folder.join(format!("{name}.pdb"));
    std::fs::write(&path, pdb).unwrap();
    path.to_str().unwrap().to_string()
}

/// log q of a row of the golden data's configurations by a model file for its peptide.
fn log_q_of_row(model: &str, golden: &BTreeMap<String, Tensor>, row: usize) -> f64 {
    let model = load_with(model, Precision::F64).unwrap();
    let (d, width) = (model.dimension(), golden["pad_x"].data.len() / golden["pad_x"].shape[0]);
    log_density(model.as_ref(), &golden["pad_x"].data[row * width..][..d])[0]
}

/// Head size and orders come from the configuration, the network's units and no noise of the centroid.
pub fn plain_config(folder: &str) -> String {
    let mut config = document(format!("{folder}/config.json"));
    config["std"] = 1.0.into();
    config["com_augmentation"] = false.into();
    config.to_string()
}

#[test]
fn converted_transferable_models_give_the_reference_values_and_are_bound_to_other_peptides() {
    for (name, kind) in [(PROSE, "prose"), (TRANSFERABLE, "transferable-tarflow")] {
        let folder = folder(&format!("convert-{kind}"));
        let golden = tensors(format!("{name}/io_f64.safetensors"));
        let checkpoint = format!("{name}/state_f32.safetensors");
        let [first, second] = ["AG", "VF"].map(|peptide| peptide_pdb(&folder, peptide));
        let config = plain_config(name);
        let options = ["--topology", &first, "--temperature", "310"];
        let model = convert(&folder, kind, &checkpoint, &config, &options);
        assert!((log_q_of_row(&model, &golden, 0) - golden["pad_log_q"].data[0]).abs() < 1e-11);
        let bound = folder.join("bound.safetensors");
        let bound = bound.to_str().unwrap();
        let bind = |peptide: &str| modejump(&["convert", &model, "--kind", kind, "--topology", peptide, "-o", bound]);
        bind(&second).succeeds();
        assert!((log_q_of_row(bound, &golden, 1) - golden["pad_log_q"].data[1]).abs() < 1e-11);
        let card = load_with(bound, Precision::F32).unwrap().card().clone();
        assert_eq!((card.model.kind(), card.temperature), ("transferable_tarflow", Some(310.0)));
        assert!(card.provenance["bound_from"].starts_with("model.safetensors"));
        assert_eq!(card.topology.unwrap().label(18), "PHE2:N (atom 19)");
        let tripeptide = "models/ala3/topology.pdb";
        bind(tripeptide).succeeds();
        only_one_hand_has_a_density(bound, tripeptide);
        // in nm the centroid is that of the peptide's atoms
        let config =
            config.replace("\"std\":1.0", "\"std\":0.35").replace("\"com_augmentation\":false", "\"pad_to\":41");
        let model = convert(&folder, kind, &checkpoint, &config, &["--topology", &first]);
        let sigma = 0.35 / 20f64.sqrt();
        let scope = load_with(&model, Precision::F64).unwrap().scope();
        assert!(matches!(scope, Scope::Noisy { sigma: s } if (s - sigma).abs() < 1e-15));
    }
}

#[test]
fn what_a_transferable_model_lacks_or_contradicts_is_said() {
    let folder = folder("convert-transferable-missing");
    let (checkpoint, plain) =
        (format!("{PROSE}/state_f32.safetensors"), format!("{TRANSFERABLE}/state_f32.safetensors"));
    let pdb = peptide_pdb(&folder, "AG");
    let topology = ["--topology", pdb.as_str()];
    let complain =
        |kind: &str, checkpoint: &str, config: &str, more: &[&str]| refusal(&folder, kind, checkpoint, config, more);
    let config = plain_config(PROSE);
    let message = complain("prose", &checkpoint, "{}", &[]);
    assert!(message.contains("std: standard deviation"), "{message}");
    let message = complain("prose", &checkpoint, "{}", &["--std", "0.35"]);
    assert!(message.contains("use --topology FILE.pdb to choose the peptide"), "{message}");
    let message = complain("prose", &checkpoint, &config, &["--topology", TOPOLOGY]);
    assert!(message.contains(TOPOLOGY) && message.contains("residue ACE1"), "{message}");
    let message = complain("tarflow", &checkpoint, &config, &[]);
    assert!(message.contains("--kind transferable-tarflow"), "{message}");
    let message = complain("prose", &plain, &plain_config(TRANSFERABLE), &topology);
    assert!(message.contains("no adaptive layer norms"), "{message}");
    for (change, to, words) in [
        ("\"channels\":8", "\"channels\":384", "channels = 384"),
        ("\"head_dim\":4", "\"head_dim\":64", "the head size 64"),
        ("\"use_transition\":true", "\"use_transition\":false", "use_transition = false"),
        ("n2c_backbone-first_variant_flip", "n2c_sideways", "permutation_keys: unknown atom order `n2c_sideways`"),
        ("\"sinusoid_div_value\":1000", "\"sinusoid_div_value\":0", "sinusoid_div_value: expected a positive number"),
        ("\"pos_embed_type\":\"sinusoidal\"", "\"pos_embed_type\":\"learned\"", "pos_embed_type = \"learned\""),
        ("\"sinusoid_div_value\":1000", "\"sinusoid_div_value\":1000,\"hidden_dim\":99", "cond.hidden_dim = 99"),
        ("\"channels\":8", "\"channels\":8,\"gelu\":\"tanh\"", "gelu = \"tanh\""),
        ("\"channels\":8", "\"channels\":8,\"layernorm_eps\":1e-6", "layernorm_eps = 1e-6"),
    ] {
        assert!(config.contains(change), "{change}: {config}");
        let message = complain("prose", &checkpoint, &config.replace(change, to), &topology);
        assert!(message.contains(words), "{words}: {message}");
    }
    // a tensor too many, a tensor too few
    let changed = folder.join("changed.safetensors");
    let mut parts = tensors(&checkpoint);
    parts.insert("blocks.0.pair_proj.0.bias".into(), tensor(&[16], [0.0; 16]));
    write(&changed, parts.clone());
    let message = complain("prose", changed.to_str().unwrap(), &config, &topology);
    assert!(message.contains("blocks.0.pair_proj.0.bias is not part of the model"), "{message}");
    parts.remove("blocks.0.pair_proj.0.bias");
    parts.remove("blocks.7.attn_blocks.0.transition.transition.linear_out.weight");
    write(&changed, parts.clone());
    let message = complain("prose", changed.to_str().unwrap(), &config, &topology);
    assert!(message.contains("blocks.7.attn_blocks.0.transition.transition.linear_out.weight is missing"), "{message}");
    // model files of this program
    let model = convert(&folder, "prose", &checkpoint, &config, &topology);
    let output = folder.join("bound.safetensors");
    let bind = |model: &str, more: &[&str]| {
        modejump(&[&["convert", model, "--kind", "prose", "-o", output.to_str().unwrap()], more].concat()).fails()
    };
    assert!(bind(&model, &[]).contains("use --topology FILE.pdb"));
    assert!(bind(&model, &["--topology", TOPOLOGY]).contains("residue ACE1"));
    assert!(bind(MODEL, &topology).contains("a model of kind coupling"));
    for option in [&["--config", "config.json"][..], &["--prefix", "net."], &["--raw-weights"]] {
        assert!(bind(&model, &[&topology[..], option].concat()).contains(&format!("remove {}", option[0])));
    }
    // one that does not load is not bound
    let (mut tensors, metadata) = read_tensors("model", &std::fs::read(&model).unwrap()).unwrap();
    tensors.remove("blocks.7.proj_out.weight").unwrap();
    let tensors = tensors.into_iter().map(|(name, t)| (name, (t.shape, Data::F64(t.data)))).collect();
    std::fs::write(&changed, write_tensors(&tensors, metadata).unwrap()).unwrap();
    let message = bind(changed.to_str().unwrap(), &topology);
    assert!(message.contains("tensor blocks.7.proj_out.weight is missing"), "{message}");
    assert!(!output.exists());
}
