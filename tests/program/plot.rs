//! Figures of `plot`, and files that it cannot read.

use crate::command::{files, folder, modejump, Run, MODEL};
use serde_json::json;

#[test]
fn every_figure_is_drawn() {
    let path = files("plot-figures");
    let wave = |scale: f64| (0..400).map(|i| scale * (0.37 * f64::from(i)).sin()).collect::<Vec<f64>>();
    let run = json!({ "name": "MD", "phi": wave(3.0), "psi": wave(2.0), "reduced_potential": wave(4.0) });
    let mut generator = run.clone();
    generator["name"] = json!("generator");
    generator["log_weight"] = json!(wave(1.5));
    std::fs::write(path("series.json"), json!({ "series": [run, generator] }).to_string()).unwrap();
    let line = |step: usize| {
        json!({ "step": step, "rate": 1e-3, "likelihood": 2.0, "reverse_kl": null, "refinement": null, "force_matching": 4.0,
            "gradient_norm": 1.0, "held_out": 1.5, "ess": 0.5, "pareto_k": 0.4, "acceptance": 0.6 })
        .to_string()
    };
    std::fs::write(path("log.jsonl"), [line(1), line(2), line(3)].join("\n")).unwrap();
    modejump(&["plot", &path("series.json"), "--log", &path("log.jsonl"), "-o", &path("")]).succeeds();
    let message = modejump(&["plot", &path("log.jsonl"), "-o", &path("")]).fails();
    assert!(message.contains("log.jsonl: a training log: pass it to --log"), "{message}");
    for name in ["ramachandran", "free_energy", "energy", "log_weights", "training"] {
        let figure = std::fs::read_to_string(path(&format!("{name}.svg"))).unwrap();
        assert!(figure.starts_with("<svg") && figure.len() > 2000, "{name}");
    }
    assert!(std::fs::read_to_string(path("training.svg")).unwrap().contains("nm⁻²"));
}

/// Points of the curves of a figure, in pixels.
fn curves(svg: &str) -> Vec<Vec<[f64; 2]>> {
    let lines =
        svg.split("<polyline").skip(1).filter(|line| line.split('>').next().unwrap().contains("stroke-width=\"2\""));
    let points = |line: &str| -> Vec<[f64; 2]> {
        let text = line.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let point = |pair: &str| pair.split_once(',').map(|(x, y)| [x, y].map(|v| v.parse().unwrap())).unwrap();
        text.split_whitespace().map(point).collect()
    };
    lines.map(points).collect()
}

#[test]
fn figures_show_what_there_is_where_weights_collapse_and_atoms_clash() {
    let path = files("plot-wild");
    let wave = |scale: f64| (0..400).map(|i| scale * (0.37 * f64::from(i)).sin()).collect::<Vec<f64>>();
    let spread = |curve: &[[f64; 2]], k: usize| {
        let values = || curve.iter().map(|point| point[k]);
        values().fold(f64::MIN, f64::max) - values().fold(f64::MAX, f64::min)
    };
    // ten angles in each of sixty bins, half of the circle 20 kT above the other
    let phi: Vec<f64> =
        (0..600).map(|i| (f64::from(i) + 0.5).mul_add(std::f64::consts::TAU / 600.0, -std::f64::consts::PI)).collect();
    let high: Vec<f64> = phi.iter().map(|&phi| if phi > 0.0 { -20.0 } else { 0.0 }).collect();
    let (mut clashing, mut collapsed) = (wave(4.0), wave(3000.0));
    clashing[..8].fill(1e7);
    collapsed[0] = 5000.0;
    let series = json!([
        { "name": "MD", "reduced_potential": wave(4.0) },
        { "name": "generator", "reduced_potential": clashing },
        { "name": "high", "phi": phi, "log_weight": high },
        { "name": "collapsed", "log_weight": collapsed, "n": 500 },
    ]);
    std::fs::write(path("series.json"), json!({ "series": series }).to_string()).unwrap();
    modejump(&["plot", &path("series.json"), "-o", &path("")]).succeeds();
    let figure = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    // the line ends where F leaves the axis
    assert_eq!(curves(&figure("free_energy.svg")).concat().len(), 30);
    let energy = figure("energy.svg");
    assert!(energy.contains("generator, 2.0 % outside") && !energy.contains("MD,"), "clashes are told");
    let there: Vec<[f64; 2]> = curves(&energy)[0].iter().copied().filter(|point| point[1] < 380.0).collect();
    assert!(spread(&there, 0) > 300.0, "and leave the reference its room");
    let weights = figure("log_weights.svg");
    assert!(weights.contains("collapsed: ESS 0.2 %, k = ∞, 100 rejected"), "{weights}");
    assert!(spread(&curves(&weights)[1], 1) > 5.0, "weights far below the largest are on the axis");
}

#[test]
fn free_energies_show_their_errors_also_where_a_bin_stands_alone() {
    let path = files("plot-errors");
    // one bin with most of the frames, and two of ten each far from it and from each other
    let phi = [vec![-1.0; 400], vec![1.0; 10], vec![2.0; 10]].concat();
    let mut collapsed = vec![-40.0; 420];
    collapsed[..2].fill(0.0);
    let series = json!([
        { "name": "lone", "phi": phi, "log_weight": vec![0.0; 420] },
        { "name": "collapsed", "phi": phi, "log_weight": collapsed },
        { "name": "line", "phi": (0..420).map(|i| -1.0 + 1e-3 * f64::from(i)).collect::<Vec<_>>(), "log_weight": vec![0.0; 420] },
    ]);
    std::fs::write(path("series.json"), json!({ "series": series }).to_string()).unwrap();
    modejump(&["plot", &path("series.json"), "-o", &path("")]).succeeds();
    let figure = std::fs::read_to_string(path("free_energy.svg")).unwrap();
    let bars: Vec<&str> = figure.split("<polyline").skip(1).filter(|bar| bar.contains("stroke-width=\"3\"")).collect();
    let heights: Vec<f64> = bars
        .iter()
        .map(|bar| {
            let points = bar.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
            let y: Vec<f64> =
                points.split_whitespace().map(|p| p.split(',').nth(1).unwrap().parse().unwrap()).collect();
            y[1] - y[0]
        })
        .collect();
    // of ten frames F is known to 2 · 10^-1/2 kT either way, and of the axis of some 4 kT that is a good part
    assert!(heights.len() == 3 && heights[1] > 50.0 && heights[2] > 50.0, "{heights:?}");
    assert_eq!(figure.matches("<polygon").count(), 1, "a band where there is a line");
    assert!(figure.contains("collapsed, no errors: &lt; 5 effective samples"), "{figure}");
    assert_eq!(figure.matches("no errors").count(), 1);
}

/// Four hundred particles of three ancestors are three samples, whether they have weights or not.
#[test]
fn copies_by_resampling_have_no_band_of_independent_samples() {
    let path = files("plot-copies");
    let phi: Vec<f64> = (0..400).map(|i| (0.37 * f64::from(i)).sin()).collect();
    let ancestor: Vec<usize> = (0..400).map(|i| i % 3).collect();
    let series = json!([
        { "name": "weighted", "phi": phi, "log_weight": vec![0.0; 400], "ancestor": ancestor },
        { "name": "equal", "phi": phi, "ancestor": ancestor },
    ]);
    std::fs::write(path("series.json"), json!({ "series": series }).to_string()).unwrap();
    modejump(&["plot", &path("series.json"), "-o", &path("")]).succeeds();
    let figure = std::fs::read_to_string(path("free_energy.svg")).unwrap();
    assert!(!figure.contains("<polygon"), "{figure}");
    assert_eq!(figure.matches("no errors: &lt; 5 effective samples").count(), 2, "{figure}");
}

/// Interleaved frames of walkers are not correlated as a series is.
#[test]
fn walkers_by_turns_have_no_band() {
    let path = files("plot-turns");
    let phi: Vec<f64> = (0..400).map(|i| 0.05 * f64::from(i % 40)).collect();
    let series = json!([{ "name": "run", "phi": phi }, { "name": "walkers", "phi": phi, "by_turns": true }]);
    std::fs::write(path("series.json"), json!({ "series": series }).to_string()).unwrap();
    modejump(&["plot", &path("series.json"), "-o", &path("")]).succeeds();
    let figure = std::fs::read_to_string(path("free_energy.svg")).unwrap();
    assert_eq!(figure.matches("<polygon").count(), 1);
    assert!(figure.contains("walkers, no errors: walkers by turns"), "{figure}");
    assert_eq!(curves(&figure).len(), 2);
}

#[test]
fn the_figure_of_a_training_shows_every_point() {
    let path = files("plot-training");
    let figure = |log: &str| {
        modejump(&["plot", "--log", log, "-o", &path("")]).succeeds();
        std::fs::read_to_string(path("training.svg")).unwrap()
    };
    let heights = |svg: &str| -> Vec<f64> {
        let of = |tag: &str| tag.split("cy=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
        svg.split("<circle").skip(1).map(of).collect()
    };
    let svg = figure("models/ala2/training.jsonl");
    // 1, 18 and 17 of -log q, 18 of each share
    let points = heights(&svg);
    assert_eq!(points.len(), 72);
    // one of training frames alone, and the first of held-out frames, the highest, below the upper edge of the frame
    let highest = points.iter().copied().fold(f64::MAX, f64::min);
    assert!(highest > 50.0 && !svg.contains("outside"), "{highest}");
    // a map's training has energies alone, and a log without a step nothing to show
    let line = json!({ "step": 5, "rate": 1e-3, "likelihood": null, "reverse_kl": 3.0, "refinement": null, "gradient_norm": 1.0,
        "held_out": null, "ess": null, "pareto_k": null, "acceptance": null });
    std::fs::write(path("map.jsonl"), line.to_string()).unwrap();
    let map = figure(&path("map.jsonl"));
    assert!(
        map.contains("reverse KL of samples") && !map.contains("training frames") && heights(&map).len() == 1,
        "{map}"
    );
    std::fs::write(path("empty.jsonl"), "").unwrap();
    assert!(modejump(&["plot", "--log", &path("empty.jsonl"), "-o", &path("")])
        .fails()
        .contains("nothing to draw yet"));
    // curves that rise have their legend below
    let legend = svg.split("<text").find(|text| text.contains("effective sample size")).unwrap();
    let y: f64 = legend.split(" y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
    assert!(y > 570.0, "{y}");
    // what is far away is told, and not drawn
    let text = std::fs::read_to_string("models/ala2/training.jsonl").unwrap();
    std::fs::write(path("wild.jsonl"), text.replacen("-215.0336", "914.0336", 1)).unwrap();
    let svg = figure(&path("wild.jsonl"));
    assert!(svg.contains("−log q of training frames, 1 of 1 points outside"), "{svg}");
    assert!(svg.contains("\n−log q of held-out frames\n") && heights(&svg).len() == 71, "{svg}");
}

#[test]
fn what_is_no_json_is_named() {
    let output = folder("plot-json").display().to_string();
    let message = modejump(&["plot", "README.md", "-o", &output]).fails();
    assert!(message.contains("README.md: expected JSON"), "{message}");
    let message = modejump(&["plot", "--log", "README.md", "-o", &output]).fails();
    assert!(message.contains("README.md: line 1: ") && message.contains("one JSON object per line"), "{message}");
    let message = modejump(&["plot", MODEL, "-o", &output]).fails();
    assert!(
        message.contains("not a text file") && message.contains("`modejump compare` to draw figures of trajectories"),
        "{message}"
    );
    let message = modejump(&["plot", MODEL, "-o", "README.md"]).fails();
    assert!(message.contains("README.md: expected a folder, found a file"), "{message}");
}

#[test]
fn series_that_cannot_be_meant_are_refused() {
    let path = files("plot-series");
    for (series, text) in [
        (
            json!([{ "name": "a", "phi": [1, 2, 3], "psi": [1, 2, 3], "log_weight": [0, 0] }]),
            "series `a` has 3 values in `phi` but 2 in `log_weight`",
        ),
        (json!([{ "name": "b", "phi": [1, 2, 3, 1, 2], "psi": [1, 2, 3] }]), "5 values in `phi` but 3 in `psi`"),
        (json!([{ "name": "c", "reduced_potential": [1, 2, 3], "log_weight": [0, 0, 0, 50] }]), "series `c` has 3"),
        (json!([{ "name": "f", "phi": [1, 2], "ancestor": [0] }]), "2 values in `phi` but 1 in `ancestor`"),
        (json!([{ "name": "d", "n": 4e12 as u64, "log_weight": [5, 5] }]), "series `d` has `n` = 4000000000000"),
        (json!([{ "name": "e", "psi": [1, 2] }]), "nothing to draw"),
        (json!([]), "nothing to draw"),
    ] {
        std::fs::write(path("series.json"), json!({ "series": series }).to_string()).unwrap();
        let message = modejump(&["plot", &path("series.json"), "-o", &path("out")]).fails();
        assert!(message.contains("series.json: ") && message.contains(text), "{message}");
        assert_eq!(std::fs::read_dir(path("out")).unwrap().count(), 0);
    }
}

#[test]
fn axes_have_the_names_of_the_torsions() {
    let path = files("plot-axes");
    let values: Vec<f64> = (0..100).map(|i| 3.0 * f64::from(i).sin()).collect();
    for (name, axes) in [("usual.json", json!([])), ("own.json", json!(["torsion 1,2,3,4"]))] {
        let series = json!({ "name": name, "axes": axes, "phi": values, "psi": values });
        std::fs::write(path(name), json!({ "series": [series] }).to_string()).unwrap();
    }
    let plot = |data: &[&str]| modejump(&[&["plot", "-o", &path("out")], data].concat());
    plot(&[&path("own.json")]).succeeds();
    let [map, profile] = ["ramachandran.svg", "free_energy.svg"]
        .map(|name| std::fs::read_to_string(path("out").to_owned() + "/" + name).unwrap());
    assert!(map.contains("torsion 1,2,3,4 / °") && map.contains("ψ / °"), "{map}");
    assert!(profile.contains("Free energy along torsion 1,2,3,4"), "{profile}");
    let message = plot(&[&path("usual.json"), &path("own.json")]).fails();
    assert!(message.contains("own.json: is along torsion 1,2,3,4") && message.contains("along φ"), "{message}");
}

#[test]
fn series_of_one_name_have_their_files() {
    let path = files("plot-names");
    for name in ["first.json", "second.json"] {
        let series = r#"{"series": [{"name": "molecule", "reduced_potential": [1.0, 2.0, 3.0, 2.5, 2.2]}]}"#;
        std::fs::write(path(name), series).unwrap();
    }
    let legend = |data: &[&str]| {
        modejump(&[&["plot", "-o", &path("")], data].concat()).succeeds();
        std::fs::read_to_string(path("energy.svg")).unwrap()
    };
    let both = legend(&[&path("first.json"), &path("second.json")]);
    assert!(both.contains("molecule (first)") && both.contains("molecule (second)"), "{both}");
    assert!(!legend(&[&path("first.json")]).contains("(first)"));
}
