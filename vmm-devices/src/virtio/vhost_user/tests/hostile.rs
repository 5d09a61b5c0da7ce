//! Back ends that do not do what the protocol says: each costs its device alone, in bounded time.

use super::peer::{
    Answer, CONFIG, GET_CONFIG, GET_FEATURES, GET_MAX_MEM_SLOTS, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM,
    GET_VRING_BASE, Has, Peer, SET_FEATURES, SET_VRING_KICK, reply,
};
use super::*;
use crate::virtio::vhost_user::VhostUserError;

fn opened(
    has: Has,
    idea: impl FnMut(&Message) -> Answer + Send + 'static,
) -> Result<VhostUser, VhostUserError> {
    let (socket, _peer) = Peer::pair(has, idea);
    let connection = Connection::over(socket, BLOCK.wanted())?;
    VhostUser::over(Arc::new(ByPath::new("/nowhere")), BLOCK, connection)
}

fn at(request: u32, answer: fn() -> Answer) -> impl FnMut(&Message) -> Answer + Send {
    move |message| if message.request == request { answer() } else { Answer::AsUsual }
}

#[test]
fn what_a_back_end_lacks_is_said() {
    let error = |has| opened(has, |_| Answer::AsUsual).unwrap_err().to_string();
    assert_eq!(
        error(Has { features: 0, ..Has::default() }),
        "the back end lacks the feature bits 0x140000000"
    );
    let protocol = Has::default().protocol & !CONFIG;
    assert!(error(Has { protocol, ..Has::default() }).contains("VHOST_USER_PROTOCOL_F_CONFIG"));
    assert!(error(Has { queues: 0, ..Has::default() }).starts_with("the back end serves 0 queues, not 1"));
    assert!(error(Has { queues: u64::MAX, ..Has::default() }).contains("(queues)"));
    // Bits that nobody knows are not agreed on.
    let has = Has { features: u64::MAX, protocol: u64::MAX, ..Has::default() };
    let user = opened(has, |_| Answer::AsUsual).unwrap();
    assert_eq!(user.queues(), 1);
}

#[test]
fn a_wrong_answer_ends_the_connection() {
    let requests = [GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_MAX_MEM_SLOTS, GET_CONFIG];
    for request in requests {
        let answers: [fn() -> Answer; 5] = [
            // To another request.
            || Answer::Reply(99, vec![0; 8]),
            // Longer than any message.
            || Answer::Bytes([1_u32, 5, u32::MAX, 0, 0].map(u32::to_le_bytes).concat()),
            // No reply, and of another version.
            || Answer::Bytes([GET_CONFIG, 0, 8, 0, 0].map(u32::to_le_bytes).concat()),
            // Half of one.
            || Answer::Close(reply(GET_FEATURES, &[0; 8])[..15].to_vec()),
            || Answer::Close(Vec::new()),
        ];
        for (which, answer) in answers.into_iter().enumerate() {
            let error = opened(Has::default(), at(request, answer)).unwrap_err();
            let is_expected = matches!(
                error,
                VhostUserError::Broken { .. } | VhostUserError::Closed | VhostUserError::Silent { .. }
            );
            assert!(is_expected, "request {request}, answer {which}: {error}");
        }
    }
}

#[test]
fn a_back_end_that_never_answers_is_given_up() {
    let error = opened(Has::default(), at(GET_FEATURES, || Answer::Silence)).unwrap_err().to_string();
    assert_eq!(error, "the back end has not answered within 4 s (features)");
}

#[test]
fn a_back_end_that_goes_wrong_while_it_serves_costs_its_device_alone() {
    // At the start of the rings, and at their end.
    let (bench, _peer) =
        Bench::with_idea(BLOCK, Has::default(), at(SET_FEATURES, || Answer::Reply(SET_FEATURES, vec![1; 8])));
    let started = bench.start(1);
    wait_for_needs_reset(&started);
    assert_eq!(bench.user.counts().losses, 1);
    assert_eq!(started.stop().len(), 1);
    let (bench, peer) =
        Bench::with_idea(BLOCK, Has::default(), at(GET_VRING_BASE, || Answer::Close(vec![0; 3])));
    let started = bench.start(1);
    peer.wait_for(SET_VRING_KICK, 1);
    assert_eq!(started.stop().len(), 1);
    assert_eq!(bench.user.counts().losses, 1);
}
