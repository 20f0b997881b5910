"""What guards the RPC, the event stream and what a node says of itself."""

from tests.hardening.removal import Removal

LIMITS = "tests/unit/node/test_rpc_limits.py::"
SERVER = "tests/unit/node/test_rpc_server.py::"
PROTOCOL = "tests/unit/node/test_rpc_protocol.py::"
HOSTILE = "tests/unit/node/test_rpc_hostile.py::"
EVENTS = "tests/unit/node/test_rpc_events.py::"
READY = "tests/unit/node/test_rpc_readiness.py::test_each_reason_alone_is_enough"
APP = "node/rpc/app.py"
CONNECTION = "node/rpc/http.py"
HTTP = "node/rpc/server.py"
FRAMING = "node/rpc/protocol.py"
FEED = "node/rpc/events.py"

REMOVALS: tuple[Removal, ...] = (
    Removal(
        "a body whose parsed values would fill the memory",
        FRAMING,
        "    if sum(body.count(mark)",
        "    if 0 * sum(body.count(mark)",
        (HOSTILE + "test_a_large_body_of_small_values_is_refused_before_it_is_parsed",),
    ),
    # How much one client may ask.
    Removal(
        "a client that calls without a pause",
        APP,
        "    if wait_s > 0:\n",
        "    if wait_s > 1e9:\n",
        (LIMITS + "test_a_client_over_its_rate_is_told_when_to_come_again",),
    ),
    Removal(
        "batches as a way around the rate limit",
        FRAMING,
        "    charge(len(document) - 1)\n",
        "    charge(0)\n",
        (LIMITS + "test_each_call_of_a_batch_counts",),
    ),
    Removal(
        "made-up addresses that fill the rate limiter's table",
        "node/rpc/limits.py",
        "            if len(self._buckets) > ADDRESSES_MAX:\n",
        "            if not self._buckets:\n",
        (LIMITS + "test_the_table_of_addresses_is_bounded_and_forgets_the_quietest",),
    ),
    Removal(
        "one IPv6 client with a network full of addresses",
        "node/rpc/limits.py",
        "    if address.version == 6:\n",
        "    if address.version == 66:\n",
        (LIMITS + "test_a_client_is_an_address_or_a_network_of_ipv6_and_never_this_machine",),
    ),
    Removal(
        "one address that takes all connections",
        HTTP,
        "connections.by_client[client] >= config.connections_per_address_max",
        "connections.by_client[client] < 0",
        (LIMITS + "test_one_address_cannot_take_all_connections",),
    ),
    Removal(
        "more connections than there is room for",
        HTTP,
        "    over = len(connections.open) >= config.connections_max\n",
        "    over = len(connections.open) < 0\n",
        (SERVER + "test_connections_over_the_limit_are_refused_and_free_places_are_given_again",),
    ),
    Removal(
        "more requests at once than are allowed",
        APP,
        "    if load.requests >= config.requests_concurrent_max:\n",
        "    if load.requests < 0:\n",
        (SERVER + "test_concurrent_requests_over_the_limit_are_told_to_come_again",),
    ),
    Removal(
        "an announced body over the limit",
        APP,
        "    if not announced.isdigit() or int(announced) > config.body_bytes_max:\n",
        "    if not announced.isdigit():\n",
        (SERVER + "test_an_announced_body_over_the_limit_is_refused_unread",),
    ),
    Removal(
        "a chunked body over the limit",
        APP,
        "                if len(body) + len(chunk) > config.body_bytes_max:\n",
        "                if len(body) < 0:\n",
        (SERVER + "test_a_chunked_body_over_the_limit_is_refused_as_it_comes",),
    ),
    Removal(
        "many large bodies at once",
        APP,
        "                if load.body_bytes + len(chunk) > bytes_held_max:\n",
        "                if load.body_bytes < 0:\n",
        (LIMITS + "test_bodies_in_memory_are_bounded_together",),
    ),
    Removal(
        "a batch of too many requests",
        FRAMING,
        "    if len(document) > batch_max:\n",
        "    if len(document) < 0:\n",
        (PROTOCOL + "test_a_batch_over_the_limit_is_refused_whole",),
    ),
    Removal(
        "a small batch with enormous answers",
        FRAMING,
        "        if size_bytes > response_bytes_max:\n",
        "        if size_bytes < 0:\n",
        (PROTOCOL + "test_a_batch_stops_executing_once_its_answers_are_too_large",),
    ),
    # Slow clients.
    Removal(
        "a request head that never ends (slowloris), and idle connections",
        CONNECTION,
        "            with trio.move_on_after(self._patience.idle_s) as self._idle:\n",
        "            with trio.move_on_after(3600) as self._idle:\n",
        (
            LIMITS + "test_a_request_head_that_does_not_come_whole_in_time_is_hung_up_on",
            LIMITS + "test_many_idle_connections_give_their_places_back",
        ),
    ),
    Removal(
        "a body that never ends, and methods that hang",
        APP,
        "        with trio.fail_after(config.request_timeout_ms / 1000):\n",
        "        with trio.fail_after(3600):\n",
        (
            LIMITS + "test_a_body_that_drips_is_timed_out_as_a_whole",
            SERVER + "test_a_slow_method_times_out",
        ),
    ),
    Removal(
        "a client that never reads its answer",
        CONNECTION,
        "        with trio.move_on_after(self._patience.piece_s) as scope:\n",
        "        with trio.move_on_after(3600) as scope:\n",
        (
            SERVER + "test_a_client_that_stops_reading_is_cut_off_in_time",
            EVENTS + "test_a_subscriber_that_stops_reading_is_cut_off_and_delays_nobody",
        ),
    ),
    Removal(
        "a client that keeps sending past its answer",
        CONNECTION,
        "        with trio.move_on_after(LINGER_S):\n",
        "        with trio.move_on_after(3600):\n",
        (SERVER + "test_a_client_that_keeps_sending_past_the_refusal_is_cut_off",),
    ),
    Removal(
        "a request hidden in a body that nobody read",
        CONNECTION,
        "        self._skip_body()\n        if self._http.their_state is h11.SEND_BODY:\n            await self._hear_out()\n",
        "        self._http = h11.Connection(h11.SERVER)\n        return not self._ending\n",
        ("tests/unit/node/test_rpc_http.py::test_a_body_that_nobody_read_is_no_second_request",),
    ),
    Removal(
        "clients that delay the node's end",
        HTTP,
        "            handlers.cancel_scope.cancel()\n",
        "            connections.closing = True\n",
        (SERVER + "test_requests_in_progress_and_clients_that_stopped_reading_do_not_delay_the_end",),
    ),
    # What the body says.
    Removal(
        "web pages of other origins, and names bound to 127.0.0.1 anew",
        APP,
        "    if origin is None:\n        return\n",
        "    if origin is None or origin:\n        return\n",
        (
            SERVER + "test_web_pages_of_other_origins_are_refused",
            EVENTS + "test_pages_of_other_origins_do_not_subscribe",
        ),
    ),
    Removal(
        "JSON that says two things at once",
        FRAMING,
        "    if len(table) != len(pairs):\n",
        "    if len(table) > len(pairs):\n",
        (PROTOCOL + "test_what_is_not_json_is_a_parse_error", HOSTILE + "test_known_traps_have_their_code"),
    ),
    Removal(
        "NaN and Infinity",
        FRAMING,
        ", parse_constant=_refuse_constant",
        "",
        (PROTOCOL + "test_what_is_not_json_is_a_parse_error", HOSTILE + "test_known_traps_have_their_code"),
    ),
    Removal(
        "JSON nested so deep that the parser gives up",
        FRAMING,
        "    except (ValueError, RecursionError) as error:\n",
        "    except ValueError as error:\n",
        (PROTOCOL + "test_what_is_not_json_is_a_parse_error", HOSTILE + "test_known_traps_have_their_code"),
    ),
    Removal(
        "ids of any kind and length, echoed",
        FRAMING,
        "    if not _is_id(identity):\n        raise",
        "    if identity is _log:\n        raise",
        (PROTOCOL + "test_what_is_no_request_is_an_invalid_request",),
    ),
    Removal(
        "parameters that nobody reads",
        "node/rpc/params.py",
        "        if name not in known:\n",
        "        if name is known:\n",
        ("tests/unit/node/test_rpc_methods.py::test_every_method_names_its_missing_and_unknown_parameters",),
    ),
    Removal(
        "a fault's details shown to clients",
        FRAMING,
        '        fault = Fault(Code.INTERNAL_ERROR, "internal error")\n',
        "        fault = Fault(Code.INTERNAL_ERROR, str(error))\n",
        (SERVER + "test_a_fault_of_the_node_hides_its_details",),
    ),
    Removal(
        "a client's words as labels of metrics",
        FRAMING,
        "    label = name if name in methods else _UNKNOWN\n",
        "    label = name\n",
        (
            "tests/unit/node/test_metrics.py::"
            "test_calls_are_counted_by_method_and_code_and_unknown_names_make_no_series",
        ),
    ),
    # The event stream.
    Removal(
        "subscribers without number",
        FEED,
        "        if self.subscribers >= self._subscribers_max:\n",
        "        if self.subscribers < 0:\n",
        (EVENTS + "test_subscribers_over_the_limit_are_refused_and_places_are_given_back",),
    ),
    Removal(
        "places of subscribers that have gone",
        APP,
        "        finally:\n            self._service.feed.leave()\n",
        "        finally:\n            pass\n",
        (
            EVENTS + "test_subscribers_over_the_limit_are_refused_and_places_are_given_back",
            EVENTS + "test_closing_the_iterator_closes_the_connection",
        ),
    ),
    Removal(
        "a resume from the beginning of a long chain",
        FEED,
        "            if at.height < oldest:\n",
        "            if at.height < 0:\n",
        (EVENTS + "test_past_the_range_a_gap_names_what_is_left_out",),
    ),
    Removal(
        "a position that the chain will not reach",
        FEED,
        "        if after is not None and after.height > head + self._resume_blocks_max + 1:\n",
        "        if after is not None and after.height < 0:\n",
        (EVENTS + "test_refusals_are_typed_and_bad_requests[/events?after=5000]",),
    ),
    Removal(
        "a subscriber that misses the rest of a block it was in",
        FEED,
        "            if event.index <= at.index or not wanted.wants(event):\n",
        "            if at.index >= 0 or not wanted.wants(event):\n",
        (EVENTS + "test_the_stream_itself_resumes_after_a_whole_block_or_in_the_middle_of_one",),
    ),
    Removal(
        "blocks kept in memory without number",
        FEED,
        "        while len(self._blocks) > BLOCKS_REMEMBERED_MAX:\n",
        "        while not self._blocks:\n",
        (EVENTS + "test_blocks_are_read_once_for_subscribers_that_keep_up_and_few_are_remembered",),
    ),
    Removal(
        "a block written to subscribers in one piece",
        FEED,
        "            if piece and len(piece) + len(event.data) > WRITE_BYTES_MAX:\n",
        "            if piece and len(piece) < 0:\n",
        (EVENTS + "test_large_blocks_are_written_in_pieces",),
    ),
    Removal(
        "HEAD requests that hold subscribers' places",
        APP,
        '    if request.method == "HEAD":',
        '    if request.method == "NONE":',
        (EVENTS + "test_head_is_no_subscriber",),
    ),
    Removal(
        "streams that end without a word, after the grace for requests",
        APP,
        "                await self._service.shutdown.wait()\n",
        "                await trio.sleep_forever()\n",
        (EVENTS + "test_the_end_of_the_server_is_said_and_prompt_whoever_listens_or_not",),
    ),
    # A node that says it is ready and is not.
    Removal(
        "ready while stopping",
        "node/observe.py",
        "    if standing.stopping:\n",
        "    if standing.stopping is None:\n",
        (READY + "[stopping]",),
    ),
    Removal(
        "ready while diverged",
        "node/observe.py",
        "    if standing.diverged_height is not None:\n",
        "    if standing.diverged_height == -1:\n",
        (READY + "[diverged]",),
    ),
    Removal(
        "ready while syncing",
        "node/observe.py",
        "    if standing.syncing:\n",
        "    if standing.syncing is None:\n",
        (READY + "[syncing]",),
    ),
    Removal(
        "ready without a quorum",
        "node/observe.py",
        "    if not standing.quorum_connected:\n",
        "    if standing.quorum_connected is None:\n",
        (READY + "[no-quorum]",),
    ),
    Removal(
        "ready while stuck",
        "node/observe.py",
        "    if standing.silence_ms > silence_ms_max:\n",
        "    if standing.silence_ms < 0:\n",
        (READY + "[stuck]",),
    ),
    Removal(
        "ready while consensus is stalled",
        "node/observe.py",
        "    if standing.stalled:\n",
        "    if standing.stalled is None:\n",
        (READY + "[stalled]",),
    ),
)
