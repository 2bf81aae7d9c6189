//! Detects molecules labelled differently from the frames a model was trained on: atoms in another order, equal parts
//! at one centre (the hydrogens of CH₂, the methyl groups of leucine) numbered the other way round, or stereocentres of
//! the other hand. Energies do not see the difference but a density does: no jump from there is accepted. Neither is one
//! from positions in another unit, or with bonds that the model keeps at another length.

use super::{kept_bonds, Model, Steering};
use crate::coordinates::chirality::classes;
use crate::coordinates::topology::{radius, STRETCHED};
use crate::coordinates::vector::distance;
use crate::coordinates::Topology;
use crate::density::Evaluation;
use crate::error::{Error, Result};

/// Gain in log q that counts as far likelier, in total and for each exchange.
const FAR_LIKELIER: f64 = 25.0;

/// log q of molecules in nm is above zero, and a few hundred lower for hot or strained ones.
const LOWEST: f64 = -300.0;

/// A bond of this length (nm) goes across a periodic box.
const ACROSS: f64 = 1.0;
/// Most bonds are shorter or longer than these multiples of their usual length in another unit (of ångström and bohr
/// taken as nm, ten and nineteen).
const OTHER_UNIT: [f64; 2] = [0.3, 5.0];

/// Two equal parts of a molecule at one centre (two atoms, two branches, or the two sides of a ring), as pairs of atoms
/// to be swapped.
pub type Exchange = Vec<[usize; 2]>;

/// Exchanges that make a configuration far likelier.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchanged {
    pub exchanges: Vec<Exchange>,
    /// log q of the configuration before (−∞ outside the support) and after the exchanges.
    pub log_density: [f64; 2],
}

/// Looks for exchanges that make `x[atoms][3]` (nm) far likelier. None for a molecule numbered as in the model's
/// frames, a model without atoms, or one with auxiliary coordinates.
///
/// Greedy: makes the best exchange, then the best of the rest, and so on, because far from all frames log q says little
/// about any one of them. Errors: those of the density.
pub fn exchanged(model: &dyn Model, x: &[f64]) -> Result<Option<Exchanged>> {
    let Some(topology) = &model.card().topology else { return Ok(None) };
    let told_apart = |exchange: &Exchange| exchange.iter().any(|&pair| model.card().model.tells_apart(pair));
    let candidates: Vec<Exchange> = equal_parts(topology).into_iter().filter(told_apart).collect();
    if candidates.is_empty() || model.steering().unwrap_or(Steering::NONE).auxiliary > 0 {
        return Ok(None);
    }
    let mut x = x.to_vec();
    model.scope().centre(&mut x);
    let [before] = log_densities(model, &x)?[..] else { return Ok(None) };
    let mut made = vec![false; candidates.len()];
    let mut now = before;
    for _ in 0..candidates.len() {
        let rows: Vec<f64> = candidates.iter().flat_map(|exchange| after(&x, exchange)).collect();
        let log_q = log_densities(model, &rows)?;
        let best = (0..candidates.len()).max_by(|&a, &b| log_q[a].total_cmp(&log_q[b])).unwrap_or(0);
        if log_q[best] > now + FAR_LIKELIER {
            (x, now) = (after(&x, &candidates[best]), log_q[best]);
            made[best] ^= true;
        } else if now == f64::NEG_INFINITY && !made.contains(&true) {
            // a single exchange may leave it outside the support: start from all of them, then undo those not needed
            x = candidates.iter().fold(x, |x, exchange| after(&x, exchange));
            made.fill(true);
            now = log_densities(model, &x)?[0];
        } else {
            break;
        }
    }
    // a molecule without density either way is simply broken
    let is_far_likelier =
        now - before > FAR_LIKELIER.max(0.5 * before.abs()) || (before == f64::NEG_INFINITY && now > 0.0);
    let exchanges = candidates.into_iter().zip(made).filter_map(|(exchange, made)| made.then_some(exchange)).collect();
    Ok(is_far_likelier.then_some(Exchanged { exchanges, log_density: [before, now] }))
}

/// Bonds in increasing order of their length, each with its length in multiples of the usual one. Atoms of unknown
/// elements may be beads, whose bonds have any length: theirs are left out.
fn stretches(model: &dyn Model, x: &[f64]) -> Vec<(f64, [usize; 2])> {
    let Some(topology) = &model.card().topology else { return Vec::new() };
    let stretch = |&[i, j]: &[usize; 2]| {
        let usual = radius(&topology.elements[i])? + radius(&topology.elements[j])?;
        Some((distance(x, i, j) / usual, [i, j]))
    };
    let mut stretches: Vec<_> = topology.bonds.iter().filter_map(stretch).collect();
    stretches.sort_by(|a, b| a.0.total_cmp(&b.0));
    stretches
}

/// The longest bond, if a periodic boundary cuts it: most bonds have their usual length.
fn cut(stretches: &[(f64, [usize; 2])], x: &[f64]) -> Option<[usize; 2]> {
    let &(_, [i, j]) = stretches.last()?;
    (stretches[stretches.len() / 2].0 < STRETCHED && distance(x, i, j) > ACROSS).then_some([i, j])
}

fn far_apart(model: &dyn Model, x: &[f64], [i, j]: [usize; 2], advice: &str) -> Error {
    Error::invalid(format!(
        "{} and {}, which are bonded in the model, are {:.2} nm apart{advice}; from such a configuration no jump is accepted",
        model.card().label(i),
        model.card().label(j),
        distance(x, i, j)
    ))
}

/// Requires bonds of about the length that their atoms' radii suggest, unless a periodic boundary cuts some or the model
/// finds the configuration likely. Errors: `x[atoms][3]` (nm) is in another unit, or has its atoms in another order.
fn require_bonds(model: &dyn Model, x: &[f64]) -> Result<()> {
    let stretches = stretches(model, x);
    let (Some(&(shortest, _)), Some(&(longest, last))) = (stretches.first(), stretches.last()) else { return Ok(()) };
    let are_usual = shortest > OTHER_UNIT[0] && longest < STRETCHED;
    if are_usual || cut(&stretches, x).is_some() || is_likely(model, x)? {
        return Ok(());
    }
    let (middle, bond) = stretches[stretches.len() / 2];
    if (OTHER_UNIT[0]..OTHER_UNIT[1]).contains(&middle) {
        return Err(far_apart(model, x, last, ": use the atoms in the order of the model"));
    }
    let advice = format!(
        ", {middle:.1} times as far as usual, and so are most bonds: pass positions in nm, with the atoms in the order of the \
         model"
    );
    Err(far_apart(model, x, bond, &advice))
}

/// Whether the model finds a configuration as likely as at least hot or strained ones.
fn is_likely(model: &dyn Model, x: &[f64]) -> Result<bool> {
    let mut x = x.to_vec();
    model.scope().centre(&mut x);
    Ok(log_densities(model, &x)?[0] >= LOWEST)
}

/// Requires a configuration from which jumps can start. Errors: those of [`require_labels`]; a molecule that a periodic
/// boundary cuts, a bond that the model keeps at another length.
pub fn require_start(model: &dyn Model, x: &[f64]) -> Result<()> {
    if let Some(bond) = cut(&stretches(model, x), x) {
        return Err(far_apart(model, x, bond, ": make the molecule whole, or pass the box"));
    }
    require_labels(model, x)?;
    let told = |error| Error::invalid(format!("{error}; from such a configuration no jump is accepted"));
    kept_bonds::require(model, x).map_err(told)
}

/// Requires a configuration like the model's frames, apart from the lengths of bonds that the model keeps. Nothing is
/// required of a model with auxiliary coordinates.
///
/// Errors: `x[atoms][3]` (nm) is not finite, is in another unit, has atoms in another order, equal atoms numbered the
/// other way round, or a stereocentre of the other hand (all named); those of the density.
pub fn require_labels(model: &dyn Model, x: &[f64]) -> Result<()> {
    let label = |atom: usize| model.card().label(atom);
    if let Some(place) = x.iter().position(|x| !x.is_finite()) {
        return Err(Error::invalid(format!("the position of {} is {}", label(place / 3), x[place])));
    }
    if x.len() != model.dimension() {
        return Ok(());
    }
    require_bonds(model, x)?;
    let kept = kept_bonds::restored(model, x)?;
    if let Some(Exchanged { exchanges, log_density: [before, after] }) = exchanged(model, &kept)? {
        let name = |exchange: &Exchange| {
            let [a, b] = exchange[0];
            let bound = if exchange.len() > 1 { " with the atoms bound to them" } else { "" };
            format!("{} and {}{bound}", label(a), label(b))
        };
        let and_then = match after < LOWEST {
            true => "; even then the configuration does not resemble these frames: start from one that does",
            false => "",
        };
        return Err(Error::invalid(format!(
            "numbered differently from the model's frames: {}. With these exchanged, log q is {after:.1} instead of \
             {before:.1}; as they are, no jump is accepted: exchange them, or train a model with atoms in this \
             order{and_then}",
            exchanges.iter().map(name).collect::<Vec<_>>().join(", ")
        )));
    }
    match model.card().stereocentres().iter().find(|centre| !centre.holds(x)) {
        None => Ok(()),
        Some(centre) => Err(Error::invalid(format!(
            "{} has the opposite handedness to that in the model's frames, so no jump is accepted: start from a \
             molecule with that handedness, or train a model with this one",
            label(centre.centre)
        ))),
    }
}

/// For every set of equal parts with single bonds to one centre, its first two as an exchange. Among three, exchanging
/// two changes the hand, and rotation about the bond supplies the rest. Parts that end where they begin come first.
fn equal_parts(topology: &Topology) -> Vec<Exchange> {
    let (neighbours, classes) = (topology.neighbours(), classes(topology));
    let mut parts: Vec<Exchange> = Vec::new();
    for around in &neighbours {
        for (k, &a) in around.iter().enumerate() {
            let equal = |&&b: &&usize| match (neighbours[a].len(), neighbours[b].len()) {
                (1, 1) => topology.elements[b] == topology.elements[a],
                _ => classes[b] == classes[a],
            };
            if around[..k].iter().any(|b| equal(&b)) {
                continue; // not the first
            }
            if let Some(&b) = around[k + 1..].iter().find(equal) {
                parts.extend(sides(&neighbours, &classes, [a, b]).filter(|sides| !contains(&parts, sides)));
            }
        }
    }
    parts.sort_by_key(|exchange| exchange.len() > 1);
    parts
}

/// Whether the exchange is there already: the sides of a ring are equal from both atoms on its axis.
fn contains(parts: &[Exchange], exchange: &Exchange) -> bool {
    let sorted = |exchange: &Exchange| {
        let mut pairs: Vec<[usize; 2]> = exchange.iter().map(|&[a, b]| [a.min(b), a.max(b)]).collect();
        pairs.sort_unstable();
        pairs
    };
    parts.iter().any(|other| sorted(other) == sorted(exchange))
}

/// Atoms of the two sides that begin with these neighbours of one centre, in pairs: two branches, or the halves of a
/// ring. None if swapping them would change bonds.
fn sides(neighbours: &[Vec<usize>], classes: &[usize], roots: [usize; 2]) -> Option<Exchange> {
    // where the swap takes an atom, as far as it is known
    let mut image: Vec<Option<usize>> = vec![None; neighbours.len()];
    let mut pairs: Exchange = Vec::new();
    let add = |[a, b]: [usize; 2], image: &mut Vec<Option<usize>>, pairs: &mut Exchange| {
        (image[a], image[b]) = (Some(b), Some(a));
        pairs.push([a, b]);
    };
    add(roots, &mut image, &mut pairs);
    let mut done = 0;
    while let Some(&[a, b]) = pairs.get(done) {
        let mut new = [Vec::new(), Vec::new()];
        for (new, [from, to]) in new.iter_mut().zip([[a, b], [b, a]]) {
            for &atom in &neighbours[from] {
                if image[atom].is_none() && neighbours[to].contains(&atom) {
                    image[atom] = Some(atom); // the centre, or where a ring closes
                }
                match image[atom] {
                    Some(other) if neighbours[to].contains(&other) => {}
                    Some(_) => return None,
                    None => new.push(atom),
                }
            }
            new.sort_by_key(|&atom| classes[atom]);
        }
        if !new[0].iter().map(|&atom| classes[atom]).eq(new[1].iter().map(|&atom| classes[atom])) {
            return None;
        }
        new[0].iter().zip(&new[1]).for_each(|(&a, &b)| add([a, b], &mut image, &mut pairs));
        done += 1;
    }
    Some(pairs)
}

fn after(x: &[f64], exchange: &Exchange) -> Vec<f64> {
    let mut x = x.to_vec();
    for [a, b] in exchange {
        (0..3).for_each(|axis| x.swap(3 * a + axis, 3 * b + axis));
    }
    x
}

/// log q of each row, −∞ outside the support.
fn log_densities(model: &dyn Model, x: &[f64]) -> Result<Vec<f64>> {
    let mut found = vec![Evaluation::inside(0.0); x.len() / model.dimension()];
    model.log_density(x, &mut found)?;
    Ok(found.iter().map(|e| if e.is_inside() { e.log_density } else { f64::NEG_INFINITY }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ala2;

    /// A sample of the model.
    fn kept(model: &dyn Model) -> Vec<f64> {
        let (mut x, mut e) = (vec![0.0; model.dimension()], [Evaluation::inside(0.0)]);
        model.sample(&|_| crate::rng::Stream::new(1, crate::rng::StreamId::Sample, 0, 0), &mut x, &mut e).unwrap();
        x
    }

    #[test]
    fn hydrogens_that_are_numbered_the_other_way_round_are_found() {
        let (topology, x) = Topology::from_pdb(&ala2("topology.pdb")).unwrap();
        let [first, second] = ["HB1", "HB2"].map(|name| topology.find("ALA2", name).unwrap());
        let caps = [["ACE1", "HH31", "HH32"], ["NME3", "HH31", "HH32"]]
            .map(|[residue, a, b]| [a, b].map(|name| topology.find(residue, name).unwrap()));
        // three methyl groups
        let one = |pairs: &[[usize; 2]]| pairs.iter().map(|&pair| vec![pair]).collect::<Vec<Exchange>>();
        assert_eq!(equal_parts(&topology), one(&[caps[0], [first, second], caps[1]]));
        let model = crate::models::load(ala2("model.safetensors")).unwrap();
        assert_eq!(exchanged(model.as_ref(), &x).unwrap(), None);
        // all combinations: exchanges that are not needed are not reported
        for kept in 1..8 {
            let all = [caps[0], [first, second], caps[1]].into_iter().enumerate();
            let pairs: Vec<[usize; 2]> = all.filter(|(k, _)| kept >> k & 1 == 1).map(|(_, pair)| pair).collect();
            let found = exchanged(model.as_ref(), &after(&x, &pairs)).unwrap().unwrap();
            assert_eq!(found.exchanges, one(&pairs));
            let [before, after] = found.log_density;
            assert!(after > before + 100.0 && after > 50.0, "{found:?}");
            if !pairs.contains(&[first, second]) {
                continue;
            }
            let message = require_labels(model.as_ref(), &super::after(&x, &pairs)).unwrap_err().to_string();
            assert!(message.contains("ALA2:HB1 (atom 12) and ALA2:HB2 (atom 13)"), "{message}");
            assert!(!message.contains("even then"), "{message}");
        }
        // two carbon atoms in another order
        let [c, ca] = ["C", "CA"].map(|name| topology.find("ALA2", name).unwrap());
        let message = require_labels(model.as_ref(), &super::after(&x, &vec![[c, ca]])).unwrap_err().to_string();
        assert!(message.contains("bonded in the model") && message.contains("order of the model"), "{message}");
        let mirror: Vec<f64> = x.iter().map(|v| -v).collect();
        let message = require_labels(model.as_ref(), &mirror).unwrap_err().to_string();
        assert!(message.contains("ALA2:CA (atom 9) has the opposite handedness"), "{message}");
        // other units, and positions that are no numbers
        for factor in [0.1, 10.0, 18.9] {
            let scaled: Vec<f64> = x.iter().map(|x| factor * x).collect();
            let message = require_labels(model.as_ref(), &scaled).unwrap_err().to_string();
            assert!(message.contains("most bonds: pass positions in nm"), "{message}");
        }
        let mut unknown = x.clone();
        unknown[25] = f64::NAN;
        let message = require_labels(model.as_ref(), &unknown).unwrap_err().to_string();
        assert_eq!(message, "the position of ALA2:CA (atom 9) is NaN");
        // cut by a box of 3 nm, and made whole in it
        let cut: Vec<f64> = x.iter().map(|at| (at - x[24]).rem_euclid(3.0)).collect();
        let message = require_start(model.as_ref(), &cut).unwrap_err().to_string();
        assert!(message.contains("make the molecule whole, or pass the box"), "{message}");
        let sides = [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]];
        let mut whole = cut.clone();
        crate::moves::make_whole(model.as_ref(), Some(&sides), &mut whole).unwrap();
        require_start(model.as_ref(), &whole).unwrap();
        // bonds of another length than the model keeps
        let model = crate::models::load(ala2("model-hbonds.safetensors")).unwrap();
        require_start(model.as_ref(), &kept(model.as_ref())).unwrap();
        let message = require_start(model.as_ref(), &x).unwrap_err().to_string();
        assert!(
            message.contains("the model keeps NME3:CH3 (atom 19) and NME3:HH33")
                && message.contains("constrain the bonds"),
            "{message}"
        );
        // models that do not distinguish equal atoms
        for name in ["invariant-ebm.safetensors", "gvp-flow.safetensors"] {
            let model = crate::models::load(ala2(name)).unwrap();
            let swapped = after(&x, &vec![[first, second]]);
            assert_eq!(exchanged(model.as_ref(), &swapped).unwrap(), None);
            let [a, b] = [&x, &swapped].map(|x| {
                let mut x = x.clone();
                model.scope().centre(&mut x);
                log_densities(model.as_ref(), &x).unwrap()[0]
            });
            assert!((a - b).abs() < 1e-3, "{name}: {a} {b}");
        }
    }

    /// Methyl groups of propane are exchanged with their hydrogens, the halves of a ring with all that is bound to them.
    #[test]
    fn equal_branches_change_places_as_a_whole() {
        let molecule = |elements: &[&str], bonds: &[[usize; 2]]| Topology {
            names: elements.iter().map(|e| e.to_string()).collect(),
            residues: vec!["LIG1".into(); elements.len()],
            elements: elements.iter().map(|e| e.to_string()).collect(),
            bonds: bonds.to_vec(),
        };
        let propane = molecule(
            &["C", "C", "C", "H", "H", "H", "H", "H", "H", "H", "H"],
            &[[0, 1], [1, 2], [0, 3], [0, 4], [0, 5], [1, 6], [1, 7], [2, 8], [2, 9], [2, 10]],
        );
        let expected =
            [vec![[3, 4]], vec![[6, 7]], vec![[8, 9]], vec![[0, 2], [3, 8], [4, 9], [5, 10]]].map(Exchange::from);
        assert_eq!(equal_parts(&propane), expected);
        // a square with a fluorine: its axis goes through atoms 0 and 2, and is found once
        let bonds = [[0, 1], [1, 2], [2, 3], [3, 0], [0, 4], [1, 5], [3, 6]];
        let ring = molecule(&["C", "C", "C", "C", "F", "H", "H"], &bonds);
        assert_eq!(equal_parts(&ring), [vec![[1, 3], [5, 6]]]);
        // a pentagon closes with a bond between paired atoms
        let ring = molecule(&["C", "C", "C", "C", "C", "F"], &[[0, 1], [1, 2], [2, 3], [3, 4], [4, 0], [0, 5]]);
        assert_eq!(equal_parts(&ring), [vec![[1, 4], [2, 3]]]);
    }
}
