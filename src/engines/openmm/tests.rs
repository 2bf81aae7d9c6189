use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::coordinates::constraints::Constraints;
use crate::coordinates::CoordinatesConfig;
use crate::engines::langevin::{Langevin, LangevinOptions};
use crate::models::coupling::{CouplingConfig, CouplingFlow, LayerConfig};
use crate::models::{Model, ModelCard};
use crate::moves::{Method, Options};
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use crate::units::thermal_energy;

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn system(name: &str) -> System {
    System::from_xml_file(repository("models/ala2").join(name)).unwrap()
}

fn golden() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(repository("tests/golden/openmm/ala2.json")).unwrap()).unwrap()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(values) => values.iter().flat_map(numbers).collect(),
        value => vec![value.as_f64().unwrap()],
    }
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// n configurations around the golden ones.
fn configurations(n: usize) -> Vec<f64> {
    let base = numbers(&golden()["x"]);
    let mut stream = Stream::new(3, StreamId::Test, 0, 0);
    (0..n * 66).map(|i| base[i % base.len()] + 0.003 * stream.normal()).collect()
}

/// Particles in a row, each bound to the next at 0.4 nm, in a box of 2 nm.
pub(super) fn chain(particles: usize, more_forces: &str) -> System {
    let bonds: String =
        (1..particles).map(|k| format!(r#"<Bond d="0.4" k="1000" p1="{}" p2="{k}"/>"#, k - 1)).collect();
    System::from_xml(&format!(
        r#"<System openmmVersion="8.0" type="System" version="1">
        <PeriodicBoxVectors><A x="2" y="0" z="0"/><B x="0" y="2" z="0"/><C x="0" y="0" z="2"/></PeriodicBoxVectors>
        <Particles>{}</Particles><Constraints/><Forces>
        <Force forceGroup="0" name="HarmonicBondForce" type="HarmonicBondForce" usesPeriodic="1" version="2"><Bonds>{bonds}</Bonds></Force>
        {more_forces}</Forces></System>"#,
        r#"<Particle mass="40"/>"#.repeat(particles)
    ))
    .unwrap()
}

/// Normal density about x with this width.
pub(super) fn about(x: &[f64], width: f64) -> Arc<dyn Model> {
    let d = x.len();
    let mut matrix = vec![0.0; d * d];
    (0..d).for_each(|i| matrix[i * d + i] = width);
    let layers = vec![LayerConfig::Whiten { transformed: (0..d).collect(), mean: x.to_vec(), matrix }];
    let coordinates = CoordinatesConfig::Cartesian { dimension: d };
    let card = ModelCard::of_coupling(CouplingConfig { uniform: vec![], layers }, coordinates);
    Arc::new(CouplingFlow::<f64>::new(card).unwrap())
}

/// Whatever temperature the System was written with.
#[test]
fn a_thermostat_of_the_system_follows_the_temperature_of_the_run() {
    let thermostat = r#"<Force type="AndersenThermostat" version="1" name="AndersenThermostat" forceGroup="0" temperature="300"
        frequency="200" randomSeed="3"/>"#;
    let system = chain(50, thermostat);
    let options = SimulationOptions { temperature: 600.0, friction: 0.0, ..SimulationOptions::default() };
    let mut simulation = Simulation::new(&system, &options).unwrap();
    let x: Vec<f64> = (0..50).flat_map(|i| [0.4 * f64::from(i), 0.0, 0.0]).collect();
    simulation.set_positions(&x).unwrap();
    simulation.step(1000).unwrap();
    let mut mean = 0.0;
    for _ in 0..100 {
        simulation.step(20).unwrap();
        mean += simulation.temperature().unwrap() / 100.0;
    }
    assert!((mean - 600.0).abs() < 50.0, "{mean} K");
}

/// A barostat draws random numbers of the process on every platform.
#[test]
fn checkpoints_on_the_way_do_not_change_what_a_barostat_does() {
    let barostat = r#"<Force forceGroup="0" frequency="1" name="MonteCarloBarostat" pressure="1" randomSeed="1" temperature="300"
        type="MonteCarloBarostat" version="1"/>"#;
    let run = |saves: bool| {
        let options = SimulationOptions { platform: "CPU".into(), ..SimulationOptions::default() };
        let mut simulation = Simulation::new(&chain(5, barostat), &options).unwrap();
        simulation.set_positions(&(0..5).flat_map(|i| [0.4 * f64::from(i), 0.0, 0.0]).collect::<Vec<_>>()).unwrap();
        for _ in 0..4 {
            simulation.step(8).unwrap();
            if saves {
                simulation.checkpoint().unwrap();
            }
        }
        simulation.box_vectors().unwrap().unwrap()[0][0]
    };
    let without = run(false);
    assert!((without - 2.0).abs() > 1e-3, "{without}");
    assert_eq!(without, run(true));
}

/// A jump would move a particle without mass, which the dynamics never does.
#[test]
fn particles_that_the_system_holds_are_not_moved() {
    let xml = std::fs::read_to_string(repository("models/ala2/system-vacuum.xml")).unwrap();
    let held = System::from_xml(&xml.replacen("mass=\"12.01078\"", "mass=\"0\"", 1)).unwrap();
    let model = crate::models::load(repository("models/ala2/model-vacuum.safetensors")).unwrap();
    let dynamics = SimulationOptions::default();
    let method = Method::Independence { rotations: None };
    let jumping = JumpingSimulation::new(&held, &dynamics, (&model, None), method, 10, Options::default());
    let exchanging = ExchangingReplicas::new(&held, &dynamics, &[model.clone(), model], &[300.0; 2], 5);
    for refused in [jumping.err(), exchanging.err()] {
        let message = refused.unwrap().to_string();
        assert!(message.contains("has no mass"), "{message}");
    }
}

/// `compare` and `reweight` add this term to the weights.
#[test]
fn the_metric_term_is_that_of_the_constraints() {
    let rigid = system("system-hbonds.xml");
    let kept = rigid.constraints().unwrap();
    let target = OpenMmTarget::new(&rigid, 300.0, 1).unwrap();
    let mut target = target.with_kept_bonds(&rigid, &kept, &|atom| atom.to_string()).unwrap();
    let (pairs, lengths): (Vec<_>, Vec<_>) = kept.iter().map(|&(a, b, length)| ([a, b], length)).unzip();
    let mut constraints = Constraints::new(&pairs, &lengths, &rigid.masses()).unwrap();
    let x = configurations(2);
    let [first, second] = [&x[..66], &x[66..]].map(|x| (target.log_metric(x), constraints.log_metric(x)));
    assert!(first.0 == first.1 && second.0 == second.1 && first != second, "{first:?} {second:?}");
}

#[test]
fn energies_and_forces_are_those_of_python_openmm() {
    let golden = golden();
    let x = numbers(&golden["x"]);
    for name in ["system", "system-hbonds"] {
        let mut target = OpenMmTarget::new(&system(&format!("{name}.xml")), 300.0, 1).unwrap();
        let (mut energies, mut forces) = (vec![0.0; 4], vec![0.0; x.len()]);
        target.energies_and_forces(&x, &mut energies, &mut forces).unwrap();
        assert!(largest_difference(&energies, &numbers(&golden[name]["energy"])) < 1e-9);
        assert!(largest_difference(&forces, &numbers(&golden[name]["force"])) < 1e-7);
        let mut u = vec![0.0; 4];
        target.reduced_potential(&x, &mut u).unwrap();
        assert!((u[0] * thermal_energy(300.0) - energies[0]).abs() < 1e-9);
    }
}

#[test]
fn gradient_is_the_slope_of_the_reduced_potential() {
    let x = configurations(1);
    let mut target = OpenMmTarget::new(&system("system.xml"), 300.0, 1).unwrap();
    let (mut u, mut gradient) = (vec![0.0], vec![0.0; 66]);
    target.reduced_potential_gradient(&x, &mut u, &mut gradient).unwrap();
    let h = 1e-5;
    for k in 0..66 {
        let mut pair = [x.clone(), x.clone()].concat();
        pair[k] += h;
        pair[66 + k] -= h;
        let mut ends = vec![0.0; 2];
        target.reduced_potential(&pair, &mut ends).unwrap();
        let slope = (ends[0] - ends[1]) / (2.0 * h);
        assert!(
            (slope - gradient[k]).abs() < 1e-4 * (1.0 + slope.abs()),
            "coordinate {k}: {slope} and {}",
            gradient[k]
        );
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let x = configurations(23);
    let run = |threads| {
        let mut target = OpenMmTarget::new(&system("system.xml"), 300.0, threads).unwrap();
        let (mut u, mut gradient) = (vec![0.0; 23], vec![0.0; x.len()]);
        target.reduced_potential_gradient(&x, &mut u, &mut gradient).unwrap();
        (u, gradient)
    };
    let one = run(1);
    for threads in [2, 3, 7, 40] {
        assert_eq!(one, run(threads));
    }
}

#[test]
fn broken_configurations_have_infinite_energy_and_leave_the_others_alone() {
    let mut x = configurations(6);
    let mut target = OpenMmTarget::new(&system("system.xml"), 300.0, 2).unwrap();
    let mut clean = vec![0.0; 6];
    target.reduced_potential(&x, &mut clean).unwrap();
    x[66 + 5] = f64::NAN;
    x[3 * 66] = f64::INFINITY;
    let first_atom = [x[4 * 66], x[4 * 66 + 1], x[4 * 66 + 2]];
    x[4 * 66 + 60..4 * 66 + 63].copy_from_slice(&first_atom);
    let (mut u, mut gradient) = (vec![0.0; 6], vec![0.0; x.len()]);
    target.reduced_potential_gradient(&x, &mut u, &mut gradient).unwrap();
    for row in 0..6 {
        if [1, 3, 4].contains(&row) {
            assert_eq!(u[row], f64::INFINITY);
        } else {
            assert!((u[row] - clean[row]).abs() < 1e-10);
            assert!(gradient[row * 66..(row + 1) * 66].iter().all(|g| g.is_finite()));
        }
    }
    assert!(target.reduced_potential(&x[1..], &mut u).is_err());
}

#[test]
fn system_tells_particles_bonds_and_constraints() {
    let (flexible, rigid) = (system("system.xml"), system("system-hbonds.xml"));
    assert_eq!(flexible.n_particles(), 22);
    assert!(flexible.constraints().unwrap().is_empty());
    let masses = rigid.masses();
    let constraints = rigid.constraints().unwrap();
    assert_eq!(constraints.len(), 12);
    for &(a, b, length) in &constraints {
        assert!(masses[a].min(masses[b]) < 1.1 && (0.09..0.12).contains(&length), "{a}-{b} {length}");
    }
    assert_eq!(constraints[0], (0, 1, 0.109));
    let bonds = flexible.bonds().unwrap();
    assert_eq!(bonds.len(), 21);
    assert_eq!(bonds, rigid.bonds().unwrap());
}

#[test]
fn a_file_that_is_no_system_is_refused_by_name() {
    let error = System::from_xml_file(repository("models/ala2/none.xml")).err().unwrap().to_string();
    assert!(error.contains("none.xml"), "{error}");
    let error = System::from_xml_file(repository("models/ala2/topology.pdb")).err().unwrap().to_string();
    assert!(error.contains("topology.pdb") && error.contains("System"), "{error}");
    let options = SimulationOptions { platform: "Abacus".into(), ..Default::default() };
    let error = Simulation::new(&system("system.xml"), &options).err().unwrap().to_string();
    assert!(error.contains("Abacus") && error.contains("Reference"), "{error}");
}

/// OpenMM itself reads some of these without a word, and crashes with the one of 2053 bytes.
#[test]
fn a_truncated_system_is_refused() {
    let xml = std::fs::read_to_string(repository("models/ala2/system.xml")).unwrap();
    let end = xml.rfind("</System>").unwrap();
    for n in [2053, 4096, 1313].into_iter().chain((xml.find("<System").unwrap() + 8..end).step_by(61)).chain([end + 8])
    {
        let error = System::from_xml(&xml[..n]).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|e| e.contains("is truncated")), "{n}: {error:?}");
    }
    let error = System::from_xml(&xml.replacen("</Particles>", "", 1)).err().unwrap().to_string();
    assert!(error.contains("line ") && error.contains("Particles"), "{error}");
}

/// As after `system.addForce(MonteCarloModeJump(…))`, whether or not the plugin is there to read it.
#[test]
fn moves_of_the_plugin_are_left_out_of_a_system() {
    let plain = std::fs::read_to_string(repository("models/ala2/system.xml")).unwrap();
    let force = r#"<Force forceGroup="0" frequency="10" model="none.safetensors" name="MonteCarloModeJump" type="MonteCarloModeJump" version="1"><Particles/></Force>"#;
    let with = |n: usize| plain.replace("</Forces>", &format!("{}</Forces>", force.repeat(n)));
    for n in [0, 2] {
        let system = System::from_xml(&with(n)).unwrap();
        assert_eq!(system.moves_left_out(), n);
        let mut target = OpenMmTarget::new(&system, 300.0, 1).unwrap();
        let mut u = [0.0];
        target.reduced_potential(&numbers(&golden()["x"])[..66], &mut u).unwrap();
        assert!(u[0].is_finite());
    }
}

fn started(name: &str, timestep: f64, seed: u64) -> Simulation {
    let options = SimulationOptions { timestep, friction: 5.0, seed, ..Default::default() };
    let mut simulation = Simulation::new(&system(name), &options).unwrap();
    simulation.set_positions(&numbers(&golden()["x"])[..66]).unwrap();
    simulation.minimise(1.0, 0).unwrap();
    simulation.redraw_velocities(&mut Stream::new(seed, StreamId::Velocity, 0, 0)).unwrap();
    simulation
}

/// Runs 100 steps; returns the final positions, velocities and step count.
fn advance(simulation: &mut Simulation) -> (Vec<f64>, Vec<f64>, u64) {
    simulation.step(100).unwrap();
    let (mut x, mut v) = (vec![0.0; 66], vec![0.0; 66]);
    simulation.positions(&mut x).unwrap();
    simulation.velocities(&mut v).unwrap();
    (x, v, simulation.step_count().unwrap())
}

#[test]
fn a_checkpoint_continues_bit_for_bit() {
    let mut simulation = started("system.xml", 0.001, 5);
    simulation.step(50).unwrap();
    let saved = simulation.checkpoint().unwrap();
    let first = advance(&mut simulation);
    assert_eq!(first.2, 150);
    simulation.load_checkpoint(&saved).unwrap();
    assert_eq!(simulation.step_count().unwrap(), 50);
    assert_eq!(first, advance(&mut simulation));
}

/// OpenMM itself reads wrong parameters, without a word, where two threads read a System at once.
#[test]
fn systems_read_at_once_have_the_same_energy() {
    let x = &numbers(&golden()["x"])[..66];
    let energy = || {
        let mut u = [0.0];
        OpenMmTarget::new(&system("system.xml"), 300.0, 1).unwrap().reduced_potential(x, &mut u).unwrap();
        u[0]
    };
    let alone = energy();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..40).for_each(|_| assert_eq!(alone, energy())));
        }
    });
}

#[test]
fn simulations_in_one_process_do_not_disturb_each_other() {
    let alone = {
        let mut simulation = started("system.xml", 0.001, 7);
        advance(&mut simulation)
    };
    let company = std::thread::spawn(|| {
        let mut other = started("system.xml", 0.001, 8);
        (0..40).for_each(|_| other.step(10).unwrap());
    });
    let mut simulation = started("system.xml", 0.001, 7);
    (0..10).for_each(|_| simulation.step(10).unwrap());
    company.join().unwrap();
    let mut x = vec![0.0; 66];
    simulation.positions(&mut x).unwrap();
    assert_eq!(alone.0, x);
}

#[test]
fn walkers_of_the_langevin_batch_sample_the_system() {
    let system = system("system.xml");
    let mut target = OpenMmTarget::new(&system, 300.0, 2).unwrap();
    let mut start = started("system.xml", 0.001, 2);
    let mut x = vec![0.0; 66];
    start.positions(&mut x).unwrap();
    let options = LangevinOptions { temperature: 300.0, friction: 5.0, timestep: 0.001, seed: 1 };
    let mut walkers = Langevin::new(&mut target, &system.masses(), &x.repeat(8), options).unwrap();
    walkers.step(&mut target, 2000).unwrap();
    let mut mean = 0.0;
    for _ in 0..40 {
        walkers.step(&mut target, 100).unwrap();
        mean += walkers.temperature() / 40.0;
    }
    // 320 nearly independent values of 66 degrees of freedom: a standard error of 2.9 K.
    assert!((mean - 300.0).abs() < 15.0, "{mean} K");
}

/// 66 or 54 degrees of freedom less 3: the mean of 400 nearly independent values has a standard error of about 2.8 K.
#[test]
fn dynamics_has_the_temperature_asked_for() {
    for (name, timestep) in [("system.xml", 0.001), ("system-hbonds.xml", 0.002)] {
        let mut simulation = started(name, timestep, 11);
        simulation.step(3000).unwrap();
        let mut sum = 0.0;
        for _ in 0..400 {
            simulation.step(100).unwrap();
            sum += simulation.temperature().unwrap();
        }
        let mean = sum / 400.0;
        assert!((mean - 300.0).abs() < 15.0, "{name}: {mean} K");
    }
}

/// With the force at x itself the draw would be 5 K too hot at this time step; 8000 draws have a standard error of
/// 0.6 K.
#[test]
fn redrawn_velocities_do_not_heat_stiff_modes() {
    let mut simulation = started("system.xml", 0.001, 4);
    simulation.step(2000).unwrap();
    let mut sum = 0.0;
    for draw in 0..8000 {
        if draw % 40 == 0 {
            simulation.step(20).unwrap();
        }
        simulation.redraw_velocities(&mut Stream::new(7, StreamId::Velocity, draw, 0)).unwrap();
        sum += simulation.temperature().unwrap();
    }
    let mean = sum / 8000.0;
    assert!((mean - 300.0).abs() < 3.0, "{mean} K");
}

#[test]
fn redrawn_velocities_obey_the_constraints() {
    let mut simulation = started("system-hbonds.xml", 0.002, 3);
    simulation.step(20).unwrap();
    simulation.redraw_velocities(&mut Stream::new(9, StreamId::Velocity, 20, 0)).unwrap();
    let (mut x, mut v) = (vec![0.0; 66], vec![0.0; 66]);
    simulation.positions(&mut x).unwrap();
    simulation.velocities(&mut v).unwrap();
    for (a, b, length) in system("system-hbonds.xml").constraints().unwrap() {
        let along: f64 = (0..3).map(|k| (x[3 * a + k] - x[3 * b + k]) * (v[3 * a + k] - v[3 * b + k])).sum();
        assert!((along / length).abs() < 1e-4, "bond {a}-{b}: {along}");
    }
}
