//! What a seed means: which fleet, which load, which trouble.

use std::sync::Arc;
use std::time::Duration;

use domain::{AccountId, CodeRef, FunctionArn, FunctionVersion, ImageConfig, LogFormat, LoggingSettings, VersionKey};
use membership::Role;

use crate::entropy::Rng;
use crate::sandboxes::Size;

/// Trouble begins, and ends: what is broken then is mended.
pub const TROUBLE: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(16));
/// Load begins, thins out after the trouble, and ends.
pub const LOAD: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(35));
/// The end: leases that nobody used have been taken back, and idle sandboxes have gone.
pub const END: Duration = Duration::from_secs(65);

/// A host of the fleet.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What it does.
    pub roles: Vec<Role>,
}

/// A function.
#[derive(Clone, Debug)]
pub struct Function {
    /// What the roles know of it.
    pub version: Arc<FunctionVersion>,
    /// Its reserved concurrency.
    pub reserved: Option<u32>,
}

/// Something goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A process is killed, and starts again after this time. `silent`: with its host's power.
    Kill {
        /// Which node.
        node: usize,
        /// Nobody is told.
        silent: bool,
        /// For how long.
        down: Duration,
    },
    /// Nothing arrives at `to` from `from`; with `both`, nor in the other direction. `None` is the database.
    Cut {
        /// From this node.
        from: Option<usize>,
        /// To this node.
        to: Option<usize>,
        /// In both directions.
        both: bool,
    },
    /// A node reaches no other, but may reach the database.
    Isolate {
        /// Which.
        node: usize,
        /// The database neither.
        database: bool,
    },
    /// All links are mended.
    Mend,
    /// The database's process ends, for this time.
    Outage(Duration),
    /// One direction is slow.
    Slow {
        /// From this node.
        from: usize,
        /// To this node.
        to: usize,
        /// So many times.
        factor: u32,
    },
    /// A clock (`None`: the database's) is wrong by so many milliseconds from now on.
    Skew {
        /// Whose.
        node: Option<usize>,
        /// By how much.
        millis: i64,
    },
}

/// A request of a client.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// When.
    pub at: Duration,
    /// Which function.
    pub function: usize,
    /// Which of the frontends.
    pub frontend: usize,
    /// How long the function takes, in milliseconds.
    pub millis: u64,
}

/// All of a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The fleet, without the database.
    pub nodes: Vec<Node>,
    /// The functions.
    pub functions: Vec<Function>,
    /// Unreserved concurrency of the account.
    pub unreserved: u32,
    /// Of each worker.
    pub size: Size,
    /// There is room for everything at once.
    pub roomy: bool,
    /// In the order of their times.
    pub faults: Vec<(Duration, Fault)>,
    /// In the order of their times.
    pub load: Vec<Ask>,
}

impl Plan {
    /// Of a seed.
    pub fn new(rng: &mut Rng) -> Self {
        let nodes = nodes(rng);
        let count = rng.between(2, 6);
        let functions: Vec<_> = (0..count).map(|n| function(n, rng)).collect();
        let unreserved = if rng.percent(50) { u32::try_from(rng.between(3, 16)).expect("small") } else { 1_000 };
        let roomy = rng.percent(75);
        let slots = if roomy { 40 } else { rng.between(3, 6) };
        let size = Size { memory_mb: slots * 512, slots: u32::try_from(slots).expect("small") };
        let faults = faults(rng, nodes.len());
        let frontends = nodes.iter().filter(|node| node.roles.contains(&Role::Frontend)).count();
        let load = load(rng, functions.len(), frontends);
        Self { nodes, functions, unreserved, size, roomy, faults, load }
    }
}

fn nodes(rng: &mut Rng) -> Vec<Node> {
    if rng.percent(25) {
        let all = vec![Role::Frontend, Role::WorkerManager, Role::Worker];
        return (0..rng.between(2, 4)).map(|n| Node { name: format!("n{n}"), roles: all.clone() }).collect();
    }
    let mut nodes = Vec::new();
    for (letter, role, most) in [("f", Role::Frontend, 2), ("m", Role::WorkerManager, 3), ("w", Role::Worker, 4)] {
        let least = if role == Role::Frontend { 1 } else { 2 };
        nodes.extend((0..rng.between(least, most)).map(|n| Node { name: format!("{letter}{n}"), roles: vec![role] }));
    }
    nodes
}

fn function(number: u64, rng: &mut Rng) -> Function {
    let name = format!("f{number}");
    let account = AccountId::local();
    let arn = FunctionArn { region: "us-east-1".into(), account: account.clone(), name: name.as_str().into() };
    let version = FunctionVersion {
        key: VersionKey(format!("{name}-1").into()),
        account,
        region: "us-east-1".to_owned(),
        name: name.clone(),
        version: "$LATEST".to_owned(),
        arn,
        runtime: "provided.al2023".to_owned(),
        handler: "bootstrap".to_owned(),
        code: CodeRef { sha256: format!("code of {name}"), size: 1, image: None },
        image_config: ImageConfig::default(),
        layers: Vec::new(),
        memory_mb: *rng.pick(&[128, 256, 512]),
        timeout: Duration::from_secs(10),
        ephemeral_mb: 512,
        environment: Default::default(),
        logging: LoggingSettings {
            format: LogFormat::Text,
            application_level: None,
            system_level: None,
            group: format!("/aws/lambda/{name}"),
        },
        tracing_active: false,
        snap_start: false,
    };
    let reserved = rng.percent(40).then(|| u32::try_from(rng.between(1, 4)).expect("small"));
    Function { version: Arc::new(version), reserved }
}

fn millis(rng: &mut Rng, low: u64, high: u64) -> Duration {
    Duration::from_millis(rng.between(low, high))
}

fn faults(rng: &mut Rng, nodes: usize) -> Vec<(Duration, Fault)> {
    let mut faults = Vec::new();
    // Some runs have much trouble, some have none.
    let count = *rng.pick(&[0, 1, 2, 3, 4, 6, 9, 14]);
    for _ in 0..count {
        let (from, to) = TROUBLE;
        let at = millis(rng, from.as_millis() as u64, to.as_millis() as u64 - 2_000);
        let node = rng.below(nodes as u64) as usize;
        let other = rng.below(nodes as u64) as usize;
        let fault = match rng.below(100) {
            0..35 => Fault::Kill { node, silent: rng.percent(35), down: millis(rng, 50, 5_000) },
            35..55 => {
                let to = (!rng.percent(20)).then_some(other);
                Fault::Cut { from: Some(node), to, both: rng.percent(70) }
            }
            55..65 => Fault::Isolate { node, database: rng.percent(50) },
            65..80 => Fault::Mend,
            80..88 => Fault::Outage(millis(rng, 200, 8_000)),
            88..95 => Fault::Slow { from: node, to: other, factor: u32::try_from(rng.between(3, 40)).expect("small") },
            _ => {
                let millis = rng.between(0, 120_000).cast_signed() - 60_000;
                Fault::Skew { node: (!rng.percent(40)).then_some(node), millis }
            }
        };
        faults.push((at, fault));
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

fn load(rng: &mut Rng, functions: usize, frontends: usize) -> Vec<Ask> {
    let mut load = Vec::new();
    let mut at = LOAD.0;
    let gap = *rng.pick(&[40, 80, 160]);
    while at < LOAD.1 {
        let ask = Ask {
            at,
            function: rng.below(functions as u64) as usize,
            frontend: rng.below(frontends as u64) as usize,
            millis: if rng.percent(10) { rng.between(300, 3_000) } else { rng.between(1, 120) },
        };
        load.push(ask);
        let factor = if at > TROUBLE.1 + Duration::from_secs(2) { 4 } else { 1 };
        at += millis(rng, 1, 2 * gap) * factor;
    }
    load
}
