//! Moving averages beside the weights.

use super::ecnf::{ecnf_config, ECNF};
use super::tarflow::TARFLOW;
use super::transferable::{peptide_pdb, plain_config, PROSE};
use super::{convert, refusal};
use crate::command::{folder, tensors, write, TOPOLOGY};
use modejump::io::model_file::{write_tensors, Data, Tensor};
use modejump::models::{load_with, Precision};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Names of parameters in the order in which the reference's modules were made.
fn made(kind: &str) -> Vec<String> {
    let affine = |names: &[&str], prefix: &str| -> Vec<String> {
        names.iter().flat_map(|n| [format!("{prefix}{n}.weight"), format!("{prefix}{n}.bias")]).collect()
    };
    let layer = |prefix: &str, last: &str, qk: bool| {
        let mut names = affine(&["attention.norm", "attention.qkv", "attention.proj"], prefix);
        if qk {
            names.extend(affine(&["attention.q_layer_norm", "attention.k_layer_norm"], prefix));
        }
        names.extend(affine(&["mlp.norm", "mlp.main.0", last], prefix));
        names
    };
    let mut names = Vec::new();
    match kind {
        "tarflow" => {
            for b in 0..4 {
                names.push(format!("blocks.{b}.pos_embed"));
                names.extend(affine(&["proj_in"], &format!("blocks.{b}.")));
                for l in 0..2 {
                    names.extend(layer(&format!("blocks.{b}.attn_blocks.{l}."), "mlp.main.3", false));
                }
                names.extend(affine(&["proj_out"], &format!("blocks.{b}.")));
            }
        }
        "prose" => {
            names.extend(["atom", "residue"].map(|of| format!("cond_embed.{of}_embed.weight")));
            names.extend(affine(&["mlp.0", "mlp.2"], "cond_embed."));
            for b in 0..8 {
                names.push(format!("blocks.{b}.pos_embed_scale"));
                names.extend(affine(&["proj_in", "proj_cond.0", "proj_cond.2"], &format!("blocks.{b}.")));
                let around = |part: &str, inside: Vec<String>| {
                    let prefix = format!("blocks.{b}.attn_blocks.0.{part}.");
                    let mut names = affine(&["adaln.norm_cond", "adaln.to_gamma.0"], &prefix);
                    names.push(format!("{prefix}adaln.to_beta.weight"));
                    names.extend(inside.into_iter().map(|name| format!("{prefix}{name}")));
                    names.extend(affine(&["scale_output.to_adaln_zero_gamma.0"], &prefix));
                    names
                };
                names.extend(around("mha", layer("mha.", "mlp.main.2", true)));
                let matrices = ["transition.swish_linear.0.weight", "transition.linear_out.weight"];
                names.extend(around("transition", matrices.map(String::from).to_vec()));
                names.extend(affine(&["proj_out"], &format!("blocks.{b}.")));
            }
        }
        _ => {
            names.extend(affine(&["embedding", "embedding_out"], "egnn."));
            for l in 0..5 {
                let prefix = format!("egnn.gcl_{l}.");
                names.extend(affine(&["edge_mlp.0", "edge_mlp.2", "node_mlp.0", "node_mlp.2", "coord_mlp.0"], &prefix));
                names.push(format!("{prefix}coord_mlp.2.weight"));
                names.extend(affine(&["att_mlp.0"], &prefix));
            }
        }
    }
    names
}

/// A training checkpoint: weights, half of what they were, with moving averages, which are what they were.
fn with_averages(folder: &Path, kind: &str, state: &str) -> String {
    let plain = tensors(state);
    let mut all = BTreeMap::new();
    let f32s =
        |t: &Tensor, factor: f64| (t.shape.clone(), Data::F32(t.data.iter().map(|v| (factor * v) as f32).collect()));
    for (name, tensor) in &plain {
        all.insert(format!("net.model.{name}"), f32s(tensor, 0.5));
    }
    for (i, name) in made(kind).iter().enumerate() {
        let tensor = plain.get(name).unwrap_or_else(|| panic!("no {name}"));
        all.insert(format!("net.shadow_params.{i}"), f32s(tensor, 1.0));
    }
    all.insert("net.num_updates".into(), (vec![1], Data::F32(vec![7.0])));
    let path = folder.join(format!("{kind}-averages.safetensors"));
    std::fs::write(&path, write_tensors(&all, Default::default()).unwrap()).unwrap();
    path.to_str().unwrap().to_string()
}

#[test]
fn moving_averages_are_converted_unless_the_weights_themselves_are_wanted() {
    let folder = folder("convert-averages");
    let ala2 = ["--topology", TOPOLOGY];
    let ecnf = ecnf_config(json!({ "std": 0.16 }));
    let pdb = peptide_pdb(&folder, "AG");
    let peptide = ["--topology", pdb.as_str()];
    for (kind, state, config, options) in [
        ("tarflow", TARFLOW.to_string(), r#"{ "std": 0.16 }"#.to_string(), ala2),
        ("prose", format!("{PROSE}/state_f32.safetensors"), plain_config(PROSE), peptide),
        ("ecnf", ECNF.to_string(), ecnf, ala2),
    ] {
        let weights = |model: String| {
            let mut tensors = tensors(&model);
            let card = load_with(&model, Precision::F32).unwrap().card().clone();
            std::fs::remove_file(&model).unwrap();
            tensors.retain(|name, _| !name.contains("embedding_out"));
            (tensors, card.provenance.get("weights").cloned())
        };
        let checkpoint = with_averages(&folder, kind, &state);
        let (expected, _) = weights(convert(&folder, kind, &state, &config, &options));
        let (found, said) = weights(convert(&folder, kind, &checkpoint, &config, &options));
        assert!(found == expected, "{kind}");
        assert_eq!(said.as_deref(), Some("moving averages"));
        let raw = [options.as_slice(), &["--raw-weights"]].concat();
        let (found, said) = weights(convert(&folder, kind, &checkpoint, &config, &raw));
        let halves = found.iter().all(|(name, t)| t.data.iter().zip(&expected[name].data).all(|(a, b)| 2.0 * a == *b));
        assert!(halves && said.is_none(), "{kind}");
        // saved beside the network, as by torch_ema
        let beside = folder.join("beside.safetensors");
        let renamed = |name: String| match name.strip_prefix("net.shadow_params.") {
            Some(number) => format!("ema.shadow_params.{number}"),
            None => format!("state_dict.{name}"),
        };
        let moved: BTreeMap<String, Tensor> =
            tensors(&checkpoint).into_iter().map(|(name, t)| (renamed(name), t)).collect();
        write(&beside, moved.clone());
        let beside = beside.to_str().unwrap();
        let (found, _) = weights(convert(&folder, kind, beside, &config, &options));
        assert!(found == expected, "{kind}");
        // another network's, beside the one that is asked for
        let networks =
            moved.iter().map(|(name, t)| (name.replace("state_dict.net.", "state_dict.teacher."), t.clone()));
        write(beside, moved.clone().into_iter().chain(networks).collect::<BTreeMap<_, _>>());
        let teacher = [options.as_slice(), &["--prefix", "state_dict.teacher.model."]].concat();
        let message = refusal(&folder, kind, beside, &config, &teacher);
        assert!(message.contains("moving averages of weights that cannot be used (ema.shadow_params.0"), "{message}");
        // whose they are is not to be seen of two
        let twice =
            moved.iter().filter_map(|(name, t)| Some((format!("other.{}", name.strip_prefix("ema.")?), t.clone())));
        write(beside, moved.clone().into_iter().chain(twice).collect::<BTreeMap<_, _>>());
        let message = refusal(&folder, kind, beside, &config, &options);
        assert!(message.contains("moving averages of weights that cannot be used (ema.shadow_params.0"), "{message}");
        // as Lightning's WeightAveraging has them
        let own = |name: &String| name.strip_prefix("net.model.").map(str::to_string);
        let raw_weights = tensors(&checkpoint);
        let (averages, raw_weights): (Vec<_>, Vec<_>) = raw_weights
            .into_iter()
            .filter_map(|(name, t)| Some((own(&name)?, t)))
            .map(|(name, t)| {
                let average = Tensor { shape: t.shape.clone(), data: t.data.iter().map(|v| 2.0 * v).collect() };
                ((format!("state_dict.net.{name}"), average), (format!("current_model_state.net.{name}"), t))
            })
            .unzip();
        write(beside, averages.into_iter().chain(raw_weights));
        let (found, _) = weights(convert(&folder, kind, beside, &config, &options));
        assert!(found == expected, "{kind}");
        let (found, _) = weights(convert(&folder, kind, beside, &config, &raw));
        assert!(
            found.iter().all(|(name, t)| t.data.iter().zip(&expected[name].data).all(|(a, b)| 2.0 * a == *b)),
            "{kind}"
        );
        // one average too few
        let mut fewer = tensors(&checkpoint);
        fewer.remove(&format!("net.shadow_params.{}", made(kind).len() - 1));
        write(&checkpoint, fewer);
        let message = refusal(&folder, kind, &checkpoint, &config, &options);
        assert!(message.contains("moving averages") && message.contains("--raw-weights"), "{message}");
    }
}
