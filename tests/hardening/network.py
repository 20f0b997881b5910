"""What keeps a node standing among hostile peers, and how to take each of it away."""

from tests.hardening.removal import Removal

ATTACKS = "tests/integration/test_network_attacks.py"
BLAME = "tests/integration/test_network_blame.py"
FLOODS = "tests/integration/test_network_floods.py"
GARBAGE = "tests/integration/test_network_garbage.py"
GOSSIP = "tests/integration/test_network_gossip_attacks.py"
STREAMS = "tests/integration/test_network_streams.py"
TALK = "tests/integration/test_network_talk.py"
QUEUES = "tests/unit/node_network/test_network_queues.py"

HOST = "node/network/host.py"
HARDENING = "node/network/hardening.py"
GOSSIP_PY = "node/network/gossip.py"
ROUTER = "node/network/router.py"
NETWORK = "node/network/network.py"
REQUESTS = "node/network/requests.py"
DIRECT = "node/network/direct.py"

GARBAGE_TEST = f"{GARBAGE}::test_garbage_on_a_protocol_harms_nothing_and_is_held_against_its_sender"

FAST = "tests/unit/node_network/test_fast_path.py::"

REMOVALS: tuple[Removal, ...] = (
    # Who gets in
    Removal(
        "plaintext dialers",
        HOST,
        "sec_opt={NOISE_ID: AdmittingNoise(key_pair, admit)},",
        'sec_opt={NOISE_ID: AdmittingNoise(key_pair, admit), "/plaintext/2.0.0": AdmittingNoise(key_pair, admit)},',
        (f"{ATTACKS}::test_garbage_and_plaintext_on_the_port_are_contained",),
    ),
    Removal(
        "strangers outside the allow-list",
        HOST,
        "if not self._admit(peer_id):",
        "if not peer_id:",
        (f"{ATTACKS}::test_a_stranger_outside_the_allow_list_is_refused_and_a_listed_one_let_in",),
    ),
    Removal(
        "strangers that take the room of configured peers",
        NETWORK,
        "return strangers < self.config.limits.connections_max - len(self._mesh | self._addresses.keys())",
        "return True",
        (f"{ATTACKS}::test_strangers_never_take_the_room_of_configured_peers",),
    ),
    Removal(
        "silent connections that hold every handshake",
        HOST,
        "await in_handshake.pop(0).close()",
        'raise SwarmException("too many handshakes at once")',
        (f"{FLOODS}::test_silent_connections_do_not_keep_others_from_a_handshake",),
    ),
    Removal(
        "closed connections that keep their slots",
        HOST,
        "await muxed.event_closed.wait()",
        "await trio.sleep_forever()",
        (f"{ATTACKS}::test_a_node_keeps_accepting_after_more_connections_than_it_has_slots",),
    ),
    # What ends the process
    Removal(
        "exceptions in negotiation and in stream handlers",
        HOST,
        "host.get_network().set_stream_handler(contained)",
        "host.get_network().set_stream_handler(inner)",
        (
            f"{ATTACKS}::test_a_protocol_name_that_is_not_utf8_resets_only_its_stream",
            f"{ATTACKS}::test_garbage_instead_of_a_gossip_message_resets_only_its_stream",
            f"{GARBAGE_TEST}[gossip-random]",
        ),
    ),
    Removal(
        "exceptions for a gossip message (an empty author, a bad key)",
        GOSSIP_PY,
        "except Exception as error:  # whatever a malformed message makes libp2p raise",
        "except MessageIgnored as error:",
        (
            f"{ATTACKS}::test_a_malformed_gossip_message_ends_nothing_and_is_not_delivered[empty-author-bad-key]",
        ),
    ),
    Removal(
        "a failure of libp2p itself",
        NETWORK,
        "            if not self._started:\n                raise _first_leaf",
        "            if failures:\n                raise _first_leaf",
        (f"{ATTACKS}::test_a_failure_inside_libp2p_restarts_the_host_on_its_port_and_the_mesh_heals",),
    ),
    # What malformed talk costs
    Removal(
        "malformed muxer frames",
        HARDENING,
        "if version != 0 or kind > yamux_module.TYPE_GO_AWAY or oversized:",
        "if version < 0:",
        tuple(
            f"{GARBAGE}::test_a_muxer_frame_that_nobody_may_send_ends_its_connection_at_once[{what}]"
            for what in ("version", "kind")  # a length is also over the room for what is unread
        ),
    ),
    Removal(
        "endless negotiation lines",
        HARDENING,
        "read_varint_prefixed_bytes_limited(reader, _NEGOTIATION_LINE_BYTES_MAX)",
        "read_varint_prefixed_bytes_limited(reader, 1 << 40)",
        (f"{ATTACKS}::test_an_endless_negotiation_line_is_not_read",),
    ),
    Removal(
        "lines that are no negotiation",
        HARDENING,
        "multiselect_communicator.read_delim = _read_delim",
        "pass",
        (f"{GARBAGE_TEST}[negotiation-random]",),
    ),
    Removal(
        "gossip over the size limit",
        HARDENING,
        "pubsub_module.read_varint_prefixed_bytes_limited = _read_gossip_rpc",
        "pass",
        (f"{ATTACKS}::test_an_oversized_gossip_message_costs_its_sender_the_connection",),
    ),
    Removal(
        "malformed direct frames",
        DIRECT,
        "for kind, payload in decoder.feed(data):",
        "for kind, payload in ():",
        (f"{ATTACKS}::test_a_malformed_frame_of_a_mesh_peer_cuts_that_peer_alone",),
    ),
    Removal(
        "oversized frames",
        "node/network/framing.py",
        "if not 1 <= length <= self._payload_bytes_max + 1:",
        "if length < 0:",
        (f"{ATTACKS}::test_a_malformed_frame_of_a_mesh_peer_cuts_that_peer_alone",),
    ),
    Removal(
        "frames cut short",
        DIRECT,
        "if decoder.buffered_bytes and ended_by_peer(stream):",
        "if False:",
        (f"{GARBAGE_TEST}[direct-cut]",),
    ),
    Removal(
        "malformed answers",
        REQUESTS,
        "self._penalise(peer_id, error.points, error.reason)",
        "pass",
        (f"{BLAME}::test_a_malformed_answer_is_held_against_who_gave_it",),
    ),
    Removal(
        "direct streams from outside the mesh",
        NETWORK,
        "if peer_id not in self._mesh:\n            raise RemoteProtocolError",
        "if not peer_id:\n            raise RemoteProtocolError",
        (f"{ATTACKS}::test_a_direct_stream_from_outside_the_mesh_is_refused",),
    ),
    Removal(
        "peers at the threshold of bad standing",
        NETWORK,
        "        if banned:\n            self._drop_soon(peer_id)",
        "        if not peer_id:\n            self._drop_soon(peer_id)",
        (f"{ATTACKS}::test_a_penalised_peer_is_disconnected_refused_and_let_in_again_after_its_ban",),
    ),
    Removal(
        "banned peers that come back",
        NETWORK,
        "if self._banned_s(peer_id):\n            return False",
        "if not peer_id:\n            return False",
        (f"{ATTACKS}::test_a_penalised_peer_is_disconnected_refused_and_let_in_again_after_its_ban",),
    ),
    # Memory
    Removal(
        "window overflow",
        HARDENING,
        "if unread > limits.receive_buffer_bytes_max:",
        "if unread < 0:",
        (
            f"{FLOODS}::test_memory_stays_bounded_when_a_peer_ignores_its_window",
            f"{ATTACKS}::test_a_peer_that_ignores_flow_control_is_cut",
        ),
    ),
    Removal(
        "many peers that fill their windows at once",
        HARDENING,
        "if unread > share and _unread_bytes_of_all(self) + length > limits.receive_buffers_bytes_max:",
        "if unread < 0:",
        (f"{FLOODS}::test_memory_stays_bounded_when_many_peers_fill_their_windows_at_once",),
    ),
    Removal(
        "many peers that fill their shares of an inbox at once",
        "node/network/queues.py",
        "bytes_max = min(self._bytes_max, self._fair_bytes) if crowded else self._bytes_max",
        "bytes_max = self._bytes_max",
        (f"{QUEUES}::test_many_peers_together_are_bounded_and_a_quiet_one_still_has_room",),
    ),
    Removal(
        "streams without number",
        HOST,
        "if len(stream.muxed_conn.streams) > streams_max:",
        "if streams_max < 0:",
        (f"{ATTACKS}::test_a_flood_of_streams_is_cut_down_to_the_limit",),
    ),
    Removal(
        "streams left half open by us after a protocol",
        HOST,
        "            await inner(stream)\n            await close_quietly(stream)",
        "            await inner(stream)",
        (f"{STREAMS}::test_a_stream_whose_protocol_is_done_with_it_is_closed_by_us_too",),
    ),
    Removal(
        "a log filled by peers",
        NETWORK,
        "if not self._log_budget.take(trio.current_time()):",
        "if not peer_id:",
        (f"{FLOODS}::test_a_peer_cannot_fill_the_log",),
    ),
    Removal(
        "libp2p on standard error",
        HARDENING,
        "    _applied = True\n    quieten_logging()",
        "    _applied = True",
        (
            f"{ATTACKS}::test_a_process_whose_peers_are_missing_refuse_and_vanish_writes_nothing_to_standard_error",
        ),
    ),
    # Gossip
    Removal(
        "bursts lost in gossip's outgoing queues",
        HARDENING,
        "pubsub_module.RpcQueue = BoundedRpcQueue",
        "pass",
        (f"{GOSSIP}::test_a_burst_waits_for_a_peer_that_is_slow_to_read",),
    ),
    Removal(
        "bursts taken for spam",
        ROUTER,
        "spam_protection_enabled=False",
        "spam_protection_enabled=True",
        (f"{TALK}::test_a_burst_of_300_gossip_messages_reaches_everyone",),
    ),
    Removal(
        "replays that mix with new messages",
        GOSSIP_PY,
        "        async with lock:\n            written",
        "        if lock:\n            written",
        (f"{TALK}::test_large_messages_replayed_to_a_newcomer_do_not_mix_with_new_ones",),
    ),
    Removal(
        "wishes answered without measure",
        ROUTER,
        "        self._answerable(control.iwant)\n",
        "",
        (
            f"{GOSSIP}::test_a_message_wanted_a_thousand_times_is_sent_once",
            f"{GOSSIP}::test_an_answer_to_wishes_is_bounded_in_bytes",
        ),
    ),
    Removal(
        "topics that are made up",
        ROUTER,
        "if entry.topicID in self._topics]",
        "]",
        (f"{GOSSIP}::test_nothing_is_remembered_of_topics_that_are_made_up",),
    ),
    Removal(
        "dials that a PRUNE asks for",
        ROUTER,
        "    async def _do_px(self, px_peers",
        "    async def _unused(self, px_peers",
        (f"{GOSSIP}::test_peers_that_a_prune_names_are_not_dialled",),
    ),
    Removal(
        "replays by subscribing again",
        GOSSIP_PY,
        "if not bucket.take(now_s):\n            self._hooks.penalise(",
        "if not bucket:\n            self._hooks.penalise(",
        (f"{GOSSIP}::test_subscribing_again_and_again_does_not_replay_again_and_again",),
    ),
    Removal(
        "forged signatures",
        HARDENING,
        "pubsub_module.signature_validator = _verify_signature",
        "pass",
        (
            f"{ATTACKS}::test_a_malformed_gossip_message_ends_nothing_and_is_not_delivered[forged-signature]",
            f"{ATTACKS}::test_a_malformed_gossip_message_ends_nothing_and_is_not_delivered[empty-author]",
        ),
    ),
    Removal(
        "signatures verified for a banned peer",
        GOSSIP_PY,
        "if self._hooks.is_banned(msg_forwarder) or self._is_msg_seen(msg):",
        "if self._is_msg_seen(msg):",
        (f"{GOSSIP}::test_forged_signatures_are_not_verified_once_their_sender_is_banned",),
    ),
    Removal(
        "more gossip than a peer's rate",
        GOSSIP_PY,
        "if not bucket.take(now_s):\n            raise MessageIgnored",
        "if not bucket:\n            raise MessageIgnored",
        (f"{GOSSIP}::test_more_messages_than_a_peers_rate_are_ignored_before_their_signatures_are_verified",),
    ),
    Removal(
        "whole messages kept to compare numbers",
        ROUTER,
        "    def _check_equivocation(self",
        "    def _unused(self",
        (f"{GOSSIP}::test_the_router_keeps_nothing_of_forwarded_messages_but_its_bounded_cache",),
    ),
    Removal(
        "the time of every message kept for ever",
        ROUTER,
        "        self.recent_message_deliveries.clear()",
        "        pass",
        (f"{GOSSIP}::test_the_router_keeps_nothing_of_forwarded_messages_but_its_bounded_cache",),
    ),
    Removal(
        "subscriptions to made-up topics",
        GOSSIP_PY,
        "allowed_topics=set(self._topics),",
        "allowed_topics=None,",
        (f"{ATTACKS}::test_subscriptions_to_made_up_topics_are_not_kept",),
    ),
    # Peers that stop, and streams that stall
    Removal(
        "stopped peers",
        HARDENING,
        "elif now_s - heard_s > timeout_s:",
        "elif now_s < heard_s:",
        (f"{ATTACKS}::test_a_stopped_process_is_noticed_and_dropped_and_shutting_down_does_not_wait_for_it",),
    ),
    Removal(
        "a peer blocked for a minute after a failed dial",
        NETWORK,
        "swarm.unblock_peer(target)  # a failed dial blocks the peer for 60 s",
        "pass",
        (f"{TALK}::test_a_peer_that_died_and_came_back_is_connected_again_and_heard",),
    ),
    Removal(
        "cancelled writes",
        HARDENING,
        "with trio.CancelScope(deadline=trio.current_time() + _FRAME_WRITE_S_MAX, shield=True) as scope:",
        "with trio.move_on_after(_FRAME_WRITE_S_MAX) as scope:",
        (f"{STREAMS}::test_cancelled_writes_leave_the_connection_whole",),
    ),
    Removal(
        "a caller that gives up is taken for a villain",
        HOST,
        "return not reset and not stream.muxed_conn.event_shutting_down.is_set()",
        "return not stream.muxed_conn.event_shutting_down.is_set()",
        (f"{STREAMS}::test_cancelled_writes_leave_the_connection_whole",),
    ),
    Removal(
        "a consumer here that stalls",
        DIRECT,
        "await inbox.put(peer_id, frame, len(payload), wait_s_max)",
        "await inbox.put(peer_id, frame, len(payload), 60.0)",
        (f"{STREAMS}::test_a_consumer_that_stalls_here_loses_old_frames_but_not_the_connection",),
    ),
    Removal(
        "a window update for each read",
        HARDENING,
        "YamuxStream._auto_tune_and_send_window_update = _release_window",
        "pass",
        (f"{STREAMS}::test_reading_costs_few_window_updates",),
    ),
    Removal(
        "more requests at once than can be served",
        REQUESTS,
        "if self._serving[peer_id] >= limits.served_per_peer_max or self._serving.total() >= limits.served_max:",
        "if limits.served_max < 0:",
        (f"{TALK}::test_a_server_refuses_more_requests_at_once_than_its_limit",),
    ),
    # What goes wrong here
    Removal(
        "a broken validator of ours taken for a villain",
        GOSSIP_PY,
        "raise MessageIgnored from error  # our own fault: it must not cost the peer",
        "return False",
        (f"{BLAME}::test_what_fails_in_this_node_costs_no_peer_anything",),
    ),
    Removal(
        "a handler of ours that fails",
        REQUESTS,
        "        except Exception:\n            log.exception",
        "        except KeyboardInterrupt:\n            log.exception",
        (f"{BLAME}::test_what_fails_in_this_node_costs_no_peer_anything",),
    ),
    Removal(
        "a port that another process listens on",
        NETWORK,
        "        check_port_is_free(self.config.listen_host, self._port)\n",
        "",
        (f"{TALK}::test_a_port_in_use_is_a_typed_error",),
    ),
    # The short way of a frame to the socket.
    Removal(
        "a frame in the middle of another's",
        "node/network/fast_path.py",
        "        if len(frame) > MAX_PLAINTEXT_LENGTH or self._locks[0].locked() or self._locks[1].locked():\n",
        "        if len(frame) > MAX_PLAINTEXT_LENGTH:\n",
        (FAST + "test_while_somebody_writes_nothing_is_encrypted_or_written",),
    ),
    Removal(
        "a frame of which the socket took a part",
        "node/network/fast_path.py",
        "        return wire[sent:]\n",
        "        return wire[len(wire) :]\n",
        (FAST + "test_a_frame_that_the_socket_takes_in_part_arrives_whole_and_before_the_next",),
    ),
    Removal(
        "reading another connection's socket after ours was closed",
        "node/network/fast_path.py",
        "            if self._stream.socket.fileno() != number:\n",
        "            if number < 0:\n",
        (FAST + "test_a_reader_never_reads_a_socket_that_took_over_its_number",),
    ),
)
