//! A small TarFlow of random weights for the 22 atoms of alanine dipeptide, as a file.

use modejump::models::layout::Start;
use modejump::models::network::Trainable;
use modejump::models::tarflow::{format, TarFlowConfig, TarNetwork};
use modejump::models::{ModelCard, ModelConfig};
use modejump::rng::{Stream, StreamId};

pub fn write(path: &std::path::Path) {
    let config = TarFlowConfig { tokens: 22, token_size: 3, channels: 8, blocks: 2, layers: 1, heads: 2, expansion: 2 };
    let network = TarNetwork::new(config.clone()).unwrap();
    let last = |name: &str, _: &[usize]| name.contains("proj_out").then_some(Start::Within(0.1));
    let parameters: Vec<f32> = network.layout().initialise(&mut Stream::new(4, StreamId::Test, 0, 0), last);
    let model = ModelConfig::Tarflow(format::config(config, 6.0));
    let card = ModelCard { temperature: Some(300.0), ..ModelCard::of_cartesian(model, 66) };
    std::fs::write(path, format::to_bytes(&card, &network, &parameters).unwrap()).unwrap();
}
