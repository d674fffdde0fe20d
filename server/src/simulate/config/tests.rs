use super::*;

fn read(text: &str) -> Result<(RunConfig, Origin), ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    RunConfig::read(&path)
}

fn refusal(text: &str) -> String {
    let checked = read(text).and_then(|(config, origin)| config.check(&origin));
    let told = checked.unwrap_err().to_string();
    // The folder is another one in every run.
    told.rsplit_once('/').map_or(told.clone(), |(_, rest)| rest.to_owned())
}

#[test]
fn the_defaults_are_valid_and_a_complete_file_reads_back() {
    let config = RunConfig::default();
    config.check(&Origin::default()).unwrap();
    let other = RunConfig {
        compare: vec![Algorithm::Local { client: 2 }, Algorithm::FedAdam],
        partition: "dirichlet:0.5".parse().unwrap(),
        weighting: Some(Weighting::Uniform),
        data_dir: Some("some/folder".into()),
        out: Some("runs/x".into()),
        lr: 1.0 / 3.0,
        ranks: vec!["4".parse().unwrap(), "8:0.25".parse().unwrap()],
        codec: "top-k:0.1+int4".parse().unwrap(),
        combine: Combine::Product,
        robust: Robust::Krum { hostile: 1 },
        evaluation: EvaluationConfig {
            suites: vec!["finance".into()],
            template: Some(Wrapping::Plain),
            shots: Some(2),
            judge_model: Some("judge".into()),
            ..EvaluationConfig::default()
        },
        ..config.clone()
    };
    for config in [config, other] {
        let (back, _) = read(&config.to_toml().unwrap()).unwrap();
        assert_eq!(back, config);
    }
}

#[test]
fn errors_name_file_line_and_key() {
    let cases = [
        ("rounds = 3\nronds = 4\n", "run.toml, line 2 (`ronds = 4`): unknown field `ronds`"),
        ("\nrounds = \"ten\"\n", "run.toml, line 2 (`rounds = \"ten\"`): invalid type: string"),
        ("rounds = -1\n", "run.toml, line 1 (`rounds = -1`): invalid value"),
        (
            "seed = 1\nalgorithm = \"fedsgd\"",
            "line 2 (`algorithm = \"fedsgd\"`): unknown algorithm",
        ),
        ("template = \"latin\"", "line 1 (`template = \"latin\"`)"),
        ("rounds = ", "run.toml, line 1 (`rounds =`)"),
        ("# rounds = 9\nseed = 1\nrounds = 0\n", "run.toml, line 3: rounds: 0 is too few"),
        ("lora_rank = 0", "run.toml, line 1: lora_rank: LoRA rank 0"),
        ("holdout = 1.5", "line 1: holdout: 1.5 is out of range"),
        ("lr = nan", "line 1: lr: NaN is out of range"),
        ("clients = 3\nalgorithm = \"local:3\"", "line 2: algorithm: there is no client 3"),
        ("compare = [\"fedavg\", \"fedavg\"]", "line 1: compare: fedavg is named twice"),
        ("beta1 = 1.0", "line 1: beta1: beta1 is 1"),
        ("seed = 1\n[evaluation]\nsuites = [\"glue\"]", "line 3: suites: there is no suite"),
        ("fields = \"a\"", "line 1: fields: \"a\" in the field mapping"),
        ("sample = 9\nclients = 4", "line 1: sample: 9 a round are more than the 4 clients"),
        (
            "combine = \"product\"\nalgorithm = \"fedadam\"",
            "line 1: combine: combination product does",
        ),
        ("combine = \"stack\"", "line 1: combine: stack adds up"),
        ("robust = \"krum:1\"", "line 1: robust: krum:1 needs 5 clients"),
        ("clip_norm = -1.0", "line 1: clip_norm: clip_norm -1"),
        ("ranks = [4, 16]", "line 1: ranks: the largest is 16"),
        ("codec = \"int3\"", "line 1 (`codec = \"int3\"`): unknown codec"),
        ("steps = 4294967296\nbatch_size = 4294967296", "line 1: steps: steps × batch_size"),
    ];
    for (text, expected) in cases {
        let told = refusal(text);
        assert!(told.contains(expected), "{text:?} told: {told}");
    }
}

#[test]
fn a_wrong_flag_is_named_as_a_flag() {
    let (mut config, mut origin) = read("rounds = 3\n").unwrap();
    config.rounds = 0;
    origin.add_flag("rounds");
    assert!(config.check(&origin).unwrap_err().to_string().starts_with("--rounds: 0"));
}

#[test]
fn a_difference_that_matters_is_found() {
    let config = RunConfig::default();
    let moved = RunConfig { out: Some("elsewhere".into()), keep_checkpoints: 9, ..config.clone() };
    assert_eq!(config.difference(&moved).unwrap(), None);
    let other = RunConfig { lora_rank: 16, ..config.clone() };
    let told = config.difference(&other).unwrap().unwrap().to_string();
    assert_eq!(told, "lora_rank was 8 and is now 16");
    let weighted = RunConfig { weighting: Some(Weighting::Uniform), ..config.clone() };
    let told = config.difference(&weighted).unwrap().unwrap().to_string();
    assert_eq!(told, "weighting was absent and is now \"uniform\"");
}
