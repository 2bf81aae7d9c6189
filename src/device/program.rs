//! Embedded sources of kernels, with the sizes they are compiled for.

/// Header files, in the order of replacement: each may include those after it.
const HEADERS: [(&str, &str); 13] = [
    ("#include \"coupling_layers.cuh\"", include_str!("../../cuda/coupling_layers.cuh")),
    ("#include \"internal_coordinates.cuh\"", include_str!("../../cuda/internal_coordinates.cuh")),
    ("#include \"coupling_back.cuh\"", include_str!("../../cuda/coupling_back.cuh")),
    ("#include \"graphormer_state.cuh\"", include_str!("../../cuda/graphormer_state.cuh")),
    ("#include \"graphormer_back.cuh\"", include_str!("../../cuda/graphormer_back.cuh")),
    ("#include \"ode.cuh\"", include_str!("../../cuda/ode.cuh")),
    ("#include \"gvp_tangents.cuh\"", include_str!("../../cuda/gvp_tangents.cuh")),
    ("#include \"gvp.cuh\"", include_str!("../../cuda/gvp.cuh")),
    ("#include \"tarflow.cuh\"", include_str!("../../cuda/tarflow.cuh")),
    ("#include \"tangents.cuh\"", include_str!("../../cuda/tangents.cuh")),
    ("#include \"networks.cuh\"", include_str!("../../cuda/networks.cuh")),
    ("#include \"common.cuh\"", include_str!("../../cuda/common.cuh")),
    ("#include \"tensor.cuh\"", include_str!("../../cuda/tensor.cuh")),
];

/// Name of a network's type in the kernels.
pub fn real<R>() -> &'static str {
    match std::mem::size_of::<R>() {
        8 => "double",
        _ => "float",
    }
}

/// Source of one file of `cuda/`, and the constants it is compiled with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// Name of the file, for messages.
    pub name: &'static str,
    /// Source with all `#include` lines replaced.
    pub source: String,
    /// (name, value)
    pub constants: Vec<(&'static str, String)>,
}

/// Programs of all models and of weights, in all variants in use.
pub fn all() -> Vec<Program> {
    use crate::models::{coupling, egnn_flow, graphormer_ebm, gvp_ebm, gvp_flow, mlp_ebm, tarflow};
    use crate::weights::on_device as weights;
    [
        coupling::programs(),
        gvp_flow::programs(),
        gvp_ebm::programs(),
        egnn_flow::programs(),
        graphormer_ebm::programs(),
        mlp_ebm::programs(),
        tarflow::programs(),
        weights::programs(),
    ]
    .concat()
}

impl Program {
    /// A program from its source, with headers inserted, and its constants (name, value).
    pub fn new(name: &'static str, source: &str, constants: &[(&'static str, &dyn std::fmt::Display)]) -> Program {
        Program {
            name,
            source: HEADERS.iter().fold(source.to_string(), |source, (line, text)| source.replace(line, text)),
            constants: constants.iter().map(|(name, value)| (*name, value.to_string())).collect(),
        }
    }

    /// `-DNAME=VALUE` for every constant.
    pub fn definitions(&self) -> impl Iterator<Item = String> + '_ {
        self.constants.iter().map(|(name, value)| format!("-D{name}={value}"))
    }

    /// FNV-1a hash of the source, the constants and everything else that determines the compiler's output.
    pub fn hash(&self, compiler: &str) -> String {
        let parts = [self.source.as_str(), compiler].map(str::to_string).into_iter().chain(self.definitions());
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in parts.flat_map(|part| [part.into_bytes(), vec![0]].concat()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        format!("{hash:016x}")
    }
}
