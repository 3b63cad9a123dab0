//! Cores that are packed while they are sent, so that nobody knows their length beforehand and nobody keeps what is
//! acknowledged: in any weather the receiver has a file that unpacks to the core, or the client says what is missing.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use harness::simnet::{
    ClientStation, Core, FakeServer, HostStation, Keeper, Manner, Rng, SimNet, Vandal, Weather,
};
use netdump::client::{ClientConfig, Ending};
use netdump::vmcore::KernelDumpHeader;
use netdump::vmcore::kdh::Compression;

use crate::contract::{assert_complete, for_seeds, must_complete, run};

/// A core, its packed form, and a client that sends this.
struct Streamed {
    image: Vec<u8>,
    file: Vec<u8>,
    compression: Compression,
}

impl Streamed {
    fn any(rng: &mut Rng) -> (Self, ClientStation) {
        let pieces = rng.below(5);
        let image = Core::sparse(rng, pieces).bytes;
        let compression = *rng.pick(&[Compression::Gzip, Compression::Zstd]);
        let file = match compression {
            Compression::Zstd => zstd::encode_all(image.as_slice(), 1).unwrap(),
            _ => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&image).unwrap();
                encoder.finish().unwrap()
            }
        };
        let key = rng.chance(300).then(|| vec![3; 4096]);
        let header = KernelDumpHeader {
            dump_length: file.len() as u64,
            dump_extent: image.len() as u64,
            key_size: key.as_ref().map_or(0, |_| 4096),
            compression,
            block_size: 4096,
            ..Default::default()
        };
        let mut sent = file.clone();
        sent.resize(file.len().next_multiple_of(4096), 0);
        let config = ClientConfig {
            arp_retries: 10,
            retries: *rng.pick(&[10, 10, 2]),
            deadline: *rng.pick(&[None, None, None, Some(Duration::from_secs(20))]),
            ..ClientStation::config(*rng.pick(&[564, 1500, 1500, 9000]))
        };
        let growth = Rng::new(rng.number());
        let client = ClientStation::growing(config, key, Core::of(sent), header.to_bytes(), growth);
        (Self { image, file, compression }, client)
    }

    fn unpack(&self, file: &[u8]) -> Vec<u8> {
        let mut image = Vec::new();
        match self.compression {
            Compression::Zstd => image = zstd::decode_all(file).unwrap(),
            _ => drop(flate2::read::GzDecoder::new(file).read_to_end(&mut image).unwrap()),
        }
        image
    }

    /// What the client says of its end, against what a server has got: cores, of which some are whole.
    fn assert_true(&self, client: &ClientStation, dumps: &[(Vec<u8>, bool)]) {
        let is_file = |core: &[u8]| core.starts_with(&self.file) && core.len() < self.file.len() + 4096;
        match client.ending.as_ref().expect("it has ended") {
            Ending::Complete => {
                let whole = dumps.iter().find(|(core, whole)| *whole && is_file(core)).expect("it is stored");
                assert!(self.unpack(&whole.0[..self.file.len()]) == self.image);
            }
            Ending::Unconfirmed(_) => assert!(dumps.iter().any(|(core, _)| is_file(core))),
            Ending::Failed(reason) => {
                // What was not made yet is missing too.
                let mut missing = client.client.missing();
                let made = client.client.acked_to().max(missing.last().map_or(0, |last| last.1));
                missing.push((made, client.core.bytes.len() as u64));
                let nothing = [(Vec::new(), false)];
                let mut cores = dumps.iter().chain(&nothing);
                let fits = cores.any(|(core, _)| client.core.agrees_but_for(core, &missing));
                assert!(fits, "{reason}: {missing:?}");
            }
        }
    }
}

#[test]
fn any_weather_ends_in_a_file_that_unpacks_to_the_core_or_in_the_truth() {
    for_seeds(|seed| {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let weather = Weather::any(&mut rng);
        let (streamed, client) = Streamed::any(&mut rng);
        let mut net = SimNet::new("streamed", seed, weather.clone(), client, HostStation::new());
        if rng.chance(300) {
            net = net.with(Vandal::new(seed));
        }
        run(&mut net);
        net.server.close(Instant::now());
        let dumps: Vec<_> =
            net.server.dumps.iter().map(|(ending, dump)| (dump.core.clone(), ending.is_complete())).collect();
        streamed.assert_true(&net.client, &dumps);
        if must_complete(&weather, &net.client.config) {
            assert_complete(&weather, &net.client);
        }
    });
}

#[test]
fn any_server_in_any_weather_gets_a_stream_or_the_truth_is_told() {
    let manners = [
        Manner::ByTheBook,
        Manner::Deaf,
        Manner::NeverAcksFinished,
        Manner::LosesLastAck,
        Manner::MovesPort { after: 50 },
        Manner::LateAcks { every: 5, by: Duration::from_millis(700) },
        Manner::StockBuffer,
    ];
    for_seeds(|seed| {
        let mut rng = Rng::new(!seed ^ 0x5eed);
        let manner = *rng.pick(&manners);
        let weather = Weather::any(&mut rng);
        let (streamed, client) = Streamed::any(&mut rng);
        let mut net = SimNet::new("streamed-any-server", seed, weather, client, FakeServer::new(manner));
        run(&mut net);
        let dumps: Vec<_> =
            net.server.stored().iter().map(|stored| (stored.core.to_vec(), stored.is_complete)).collect();
        streamed.assert_true(&net.client, &dumps);
    });
}
