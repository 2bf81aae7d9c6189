//! Units are OpenMM's: nm, ps, kJ/mol, K, radian, dalton. Conversions happen only where files and engines are read or
//! written.

/// Avogadro constant, 1/mol (2019 SI; the value OpenMM compiles in).
pub const AVOGADRO: f64 = 6.022_140_76e23;
/// Boltzmann constant times the Avogadro constant, kJ/(mol K): OpenMM's `BOLTZ`.
pub const BOLTZMANN: f64 = 1.380_649e-23 * AVOGADRO / 1000.0;
/// nm per ångström.
pub const NM_PER_ANGSTROM: f64 = 0.1;

/// kT in kJ/mol at `temperature` in K.
pub fn thermal_energy(temperature: f64) -> f64 {
    BOLTZMANN * temperature
}
