"""Configurations: what is accepted, what is refused with which words, how a request changes a server's."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.budget import plan_counts
from vllm_prune.config import (
    ATTENTION,
    DEFAULT_KEEP_RATIO,
    NO_METHOD,
    PRESETS,
    PruneConfig,
    PruneConfigError,
    Stage1Config,
    check_override_policy,
    preset,
)
from vllm_prune.override import ServerSettings

RATIOS = st.floats(0, 1, exclude_min=True)
TAUS = st.floats(0, 1, exclude_min=True, exclude_max=True)
STAGE1 = st.builds(Stage1Config, tau=TAUS, cluster_ratio=RATIOS, temporal_segment_ratio=RATIOS)


@st.composite
def configs(draw: st.DrawFn) -> PruneConfig:
    """Any valid configuration without parameters of methods."""
    stage1 = draw(st.none() | STAGE1)
    method = draw(st.sampled_from([NO_METHOD, ATTENTION, "uniform", "random"]))
    fields = {"stage1": stage1, "method": method}
    layers = (
        draw(st.none() | st.lists(st.integers(0, 40), min_size=1, max_size=3, unique=True))
        if method == ATTENTION
        else None
    )
    if layers:
        fields["layers"] = sorted(layers)
    amount = draw(st.sampled_from(["none", "ratio", "target"])) if stage1 or method != NO_METHOD else "none"
    if amount == "ratio":
        fields["keep_ratio"] = draw(st.lists(RATIOS, min_size=len(layers), max_size=len(layers)) if layers else RATIOS)
    if amount == "target":
        fields["target_token_num"] = draw(st.integers(1, 10**6))
    if method == "random":
        fields["params"] = {"seed": draw(st.integers(0, 9))}
    return PruneConfig(**fields)


class TestPresets:
    def test_published_values(self):
        default = preset("default")
        assert default.stage1 == Stage1Config(tau=0.8, cluster_ratio=0.5, temporal_segment_ratio=0.25)
        assert (default.method, default.keep_ratio, default.layers) == (ATTENTION, DEFAULT_KEEP_RATIO, None)
        assert default.resolved_layers(28) == (10,)

    def test_what_the_names_promise(self):
        assert preset("baseline") == PruneConfig()
        assert preset("baseline").keeps_everything
        assert not preset("stage1_only").query_aware
        assert preset("stage2_only").stage1 is None
        assert preset("stage2_only").query_aware
        own = {"baseline", "stage1_only", "stage2_only", "default", "ask_first", "conservative", "aggressive"}
        assert set(PRESETS) == own | {"fastv", "pyramiddrop", "sparsevlm", "framefusion", "framefusion_dpp", "dtd"}

    def test_what_papers_are_known_by(self):
        last, mean = ({"text": text, "heads": "mean"} for text in ("last", "mean"))
        found = {name: preset(name) for name in ("fastv", "pyramiddrop", "sparsevlm")}
        assert {name: config.params for name, config in found.items()} == {
            "fastv": last,
            "pyramiddrop": last,
            "sparsevlm": mean,
        }
        assert {name: config.resolved_layers(32) for name, config in found.items()} == {
            "fastv": (1,),
            "pyramiddrop": (7, 15, 23),
            "sparsevlm": (2, 6, 15),
        }
        assert {name: plan_counts(config, 576).layers for name, config in found.items()} == {
            "fastv": (288,),
            "pyramiddrop": (288, 144, 72),
            "sparsevlm": (300, 201, 111),
        }

    def test_they_cannot_be_changed(self):
        with pytest.raises(TypeError):
            PRESETS["mine"] = PruneConfig()
        with pytest.raises(AttributeError):
            preset("default").keep_ratio = 1.0

    @pytest.mark.parametrize("name", ["magic", "", "Default", None, ["default"], {}, 3])
    def test_unknown_ones_list_the_known_ones(self, name):
        with pytest.raises(PruneConfigError, match="baseline, stage1_only"):
            preset(name)


class TestValues:
    @pytest.mark.parametrize(
        "value", [0, -0.1, 1.0001, math.nan, math.inf, -math.inf, 10**400, "0.5", "", True, False, None, [], {}, 1j]
    )
    @pytest.mark.parametrize("field", ["tau", "cluster_ratio", "temporal_segment_ratio"])
    def test_ratios_of_stage1(self, field, value):
        with pytest.raises(PruneConfigError, match=rf"^stage1\.{field}="):
            Stage1Config(**{field: value})

    @pytest.mark.parametrize("value", [0, -1, 1.5, math.nan, math.inf, 10**400, "0.5", True, False, {}, {0.5}])
    def test_keep_ratio(self, value):
        with pytest.raises(PruneConfigError, match=r"^keep_ratio=.*must be .*above 0 and at most 1"):
            PruneConfig(method="uniform", keep_ratio=value)

    @pytest.mark.parametrize("value", [0, -3, 2.0, math.nan, "5", True, {}])
    def test_target_token_num(self, value):
        with pytest.raises(PruneConfigError, match=r"^target_token_num=.*1 or more"):
            PruneConfig(method="uniform", target_token_num=value)

    def test_ratio_and_target_exclude_each_other(self):
        with pytest.raises(PruneConfigError, match="give one of the two"):
            PruneConfig(method="uniform", keep_ratio=0.5, target_token_num=5)

    @pytest.mark.parametrize(
        "layers", [[], [3, 3], [5, 2], [-1], [1.0], ["1"], [True], "3", [0.5, 0.5], [0.5, 2], [0.0], [float("nan")]]
    )
    def test_layers(self, layers):
        with pytest.raises(PruneConfigError, match=r"^layers="):
            PruneConfig(method=ATTENTION, layers=layers)

    @pytest.mark.parametrize(
        "fields",
        [
            {"keep_ratio": [0.5, 0.5]},
            {"keep_ratio": [0.5, 0.5], "layers": [1]},
            {"keep_ratio": [], "layers": [1]},
            {"keep_ratio": [0.5, 0], "layers": [1, 2]},
            {"target_token_num": [5, 9], "layers": [1, 2]},
            {"target_token_num": [5, 0], "layers": [1, 2]},
        ],
    )
    def test_lists_need_a_fitting_value_for_each_layer(self, fields):
        with pytest.raises(PruneConfigError):
            PruneConfig(method=ATTENTION, **fields)

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            (
                {"method": "magic"},
                "method='magic': unknown; known: (?!.*topk).*random.*uniform.*attention, question, none",
            ),
            ({"method": 3}, "method=3: must be a string"),
            ({"method": ["random"]}, "must be a string"),
            ({"method": "random", "params": {"speed": 1}}, "no parameter 'speed'.*seed"),
            ({"method": "random", "params": {"seed": -1}}, "seed=-1"),
            ({"method": "random", "params": {1: 2}}, "params: the name 1 must be a string"),
            ({"method": "random", "params": [1]}, "params=.*an object"),
            ({"method": ATTENTION, "params": {"text": "loud"}}, "params.text='loud': must be one of max, mean"),
            ({"method": ATTENTION, "params": {"text": ["max"]}}, "params.text"),
            ({"method": ATTENTION, "params": {"texts": "max"}}, "'texts'; known keys: relevance, text"),
            (
                {"method": ATTENTION, "params": {"relevance": "text"}},
                "params.relevance='text': must be one of attention",
            ),
            (
                {"method": ATTENTION, "params": {"relevance": "learned", "heads": "max"}},
                "params.heads: needs relevance",
            ),
            (
                {"method": ATTENTION, "params": {"relevance": "learned", "quota": "frame"}},
                "params.quota: needs relevance",
            ),
            ({"method": ATTENTION, "params": {"scope": "frame"}}, 'params.scope: needs relevance "learned"'),
            ({"method": ATTENTION, "params": {"exponent": 1, "selector": "dpp"}}, "params.exponent: needs relevance"),
            (
                {"method": ATTENTION, "params": {"relevance": "learned", "exponent": 1}},
                "params.exponent: has no effect",
            ),
            (
                {"method": ATTENTION, "params": {"relevance": "learned", "selector": "dpp", "exponent": 17}},
                "params.exponent=17: must be a number from 0 to 16",
            ),
            ({"params": {"seed": 1}}, "needs a method"),
            ({"keep_ratio": 0.5}, "needs stage1 or a method"),
            ({"target_token_num": 5}, "needs stage1 or a method"),
            ({"method": "uniform", "layers": [1]}, 'only method "attention"'),
        ],
    )
    def test_what_does_not_go_together(self, fields, said):
        with pytest.raises(PruneConfigError, match=said):
            PruneConfig(**fields)

    def test_lists_become_tuples_and_integers_floats(self):
        config = PruneConfig(method=ATTENTION, layers=[1, 3], keep_ratio=[1, 0.5])
        assert (config.layers, config.keep_ratio) == ((1, 3), (1.0, 0.5))

    def test_parameters_are_copied(self):
        params = {"seed": 1}
        config = PruneConfig(method="random", params=params)
        params["seed"] = 2
        assert config.params == {"seed": 1}

    def test_stage_1_by_another_method(self):
        config = PruneConfig.parse({"stage1": {"method": "framefusion"}})
        assert config.to_dict()["stage1"]["method"] == "framefusion"
        assert (config.finds_segments, PruneConfig.parse({"stage1": {}}).finds_segments) == (False, True)
        for stage1, said in (
            ({"method": "dpp"}, r"stage1\.method='dpp': must be one of prunevid, framefusion, "),
            ({"method": "tome", "where": "processor"}, r"stage1\.method='tome': looks at features; give where="),
        ):
            with pytest.raises(PruneConfigError, match=said):
                PruneConfig.parse({"stage1": stage1})
        with pytest.raises(PruneConfigError, match=r'params\.quota="segment": needs stage1 with where="encoder"'):
            PruneConfig.parse({"preset": "framefusion", "params": {"quota": "segment"}})
        with pytest.raises(PruneConfigError, match=r'params\.quota="frame": the selector "dpp" shares the budget'):
            PruneConfig.parse({"preset": "default", "params": {"quota": "frame", "selector": "dpp"}})
        with pytest.raises(PruneConfigError, match=r'params\.quota="frame": needs stage1 with where="encoder"'):
            PruneConfig.parse({"method": "attention", "params": {"quota": "frame"}})

    def test_layers_come_after_those_that_add_rows_of_the_encoder(self):
        default, early = PruneConfig(), PruneConfig(method=ATTENTION, layers=[0.02, 0.5])
        assert [default.resolved_layers(depth, 3) for depth in (4, 6, 28)] == [(2,), (2,), (10,)]
        assert early.resolved_layers(28, 3) == (2, 13)
        assert PruneConfig(method=ATTENTION, layers=[2]).resolved_layers(28, 3) == (2,)
        with pytest.raises(PruneConfigError, match=r"layers=\[1\]: must lie between 2 and 26 .*first 3 of which"):
            PruneConfig(method=ATTENTION, layers=[1]).resolved_layers(28, 3)

    def test_layers_scale_with_the_depth_and_leave_one_to_run(self):
        assert [PruneConfig().resolved_layers(depth) for depth in (2, 6, 28, 36)] == [(0,), (2,), (10,), (13,)]
        shares = PruneConfig(method=ATTENTION, layers=[0.25, 0.5, 0.75])
        assert [shares.resolved_layers(depth) for depth in (4, 6, 28)] == [(0, 1, 2), (1, 2, 3), (6, 13, 20)]
        with pytest.raises(PruneConfigError, match=r"layers=\[0, 1, 2\]: must lie between 0 and 1"):
            shares.resolved_layers(3)
        with pytest.raises(PruneConfigError, match=r"layers=\[5\]: must lie between 0 and 4"):
            PruneConfig(method=ATTENTION, layers=[5]).resolved_layers(6)

    @pytest.mark.parametrize(
        ("fields", "keeps_everything", "query_aware"),
        [
            ({}, True, False),
            ({"keep_ratio": 1}, True, False),
            ({"method": "uniform", "keep_ratio": 1}, True, False),
            ({"method": "uniform", "keep_ratio": 0.99}, False, False),
            ({"method": ATTENTION}, False, True),
            ({"method": ATTENTION, "keep_ratio": 1}, True, False),
            ({"method": ATTENTION, "layers": [1, 2], "keep_ratio": [1, 1]}, True, False),
            ({"method": ATTENTION, "layers": [1, 2], "keep_ratio": [1, 0.5]}, False, True),
            ({"stage1": Stage1Config()}, False, False),
            ({"stage1": Stage1Config(), "method": ATTENTION, "keep_ratio": 1}, False, False),
        ],
    )
    def test_what_they_come_to(self, fields, keeps_everything, query_aware):
        config = PruneConfig(**fields)
        assert (config.keeps_everything, config.query_aware) == (keeps_everything, query_aware)


class TestParse:
    @given(configs())
    def test_json_round_trip(self, config):
        assert PruneConfig.parse(config.to_json()) == config
        assert PruneConfig.parse(config.to_dict()) == config
        assert PruneConfig.parse(config) is config

    @given(configs())
    def test_json_is_canonical(self, config):
        again = json.loads(config.to_json())
        assert PruneConfig.parse(dict(reversed(again.items()))).to_json() == config.to_json()

    @given(configs(), configs())
    def test_equal_means_equal_json(self, one, other):
        assert (one == other) == (one.to_json() == other.to_json())

    @given(configs())
    def test_nothing_changes_nothing(self, base):
        assert PruneConfig.parse({}, base) == base

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda x: (
                st.lists(x)
                | st.dictionaries(
                    st.sampled_from(["stage1", "method", "keep_ratio", "layers", "preset", "params", "x"]), x
                )
            ),
        )
    )
    def test_anything_else_is_refused_in_its_own_words(self, value):
        """Whatever JSON can hold is a configuration or a PruneConfigError."""
        with contextlib.suppress(PruneConfigError):
            PruneConfig.parse(value).to_json()

    @pytest.mark.parametrize("value", [None, 3, 0.5, True, [], ["default"], (), b"default", object()])
    def test_other_types_are_refused(self, value):
        with pytest.raises(PruneConfigError, match="must be a preset's name"):
            PruneConfig.parse(value)

    @pytest.mark.parametrize("text", ["{", '{"keep_ratio": }', "{'keep_ratio': 1}", '{"a":' * 3_000])
    def test_broken_json_is_refused_and_not_repeated_at_length(self, text):
        with pytest.raises(PruneConfigError, match="not valid JSON") as refused:
            PruneConfig.parse(text)
        assert len(str(refused.value)) < 500

    def test_a_name_is_not_repeated_at_length(self):
        with pytest.raises(PruneConfigError) as refused:
            PruneConfig.parse("x" * 10_000)
        assert len(str(refused.value)) < 500

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("default", preset("default")),
            (' {"preset": "default"}', preset("default")),
            (
                {"preset": "default", "keep_ratio": 0.2},
                PruneConfig(stage1=Stage1Config(), method=ATTENTION, keep_ratio=0.2),
            ),
            ({"preset": "default", "stage1": None}, preset("stage2_only")),
            ({"preset": "default", "stage1": False}, preset("stage2_only")),
            ({"preset": "default", "enable_stage1": False}, preset("stage2_only")),
            ({"preset": "default", "enable_pruning": False}, preset("stage1_only")),
            ({"preset": "default", "method": "none"}, preset("stage1_only")),
            ({"stage1": True}, preset("stage1_only")),
            ({"stage1": {}}, preset("stage1_only")),
            ({"enable_stage1": True}, preset("stage1_only")),
            ({"enable_stage1": True, "enable_pruning": True, "keep_ratio": 0.4}, preset("default")),
            ({"enable_pruning": True, "pruning_layer": 3}, PruneConfig(method=ATTENTION, layers=[3])),
            ({"stage1": {"tau": 0.7}}, PruneConfig(stage1=Stage1Config(tau=0.7))),
        ],
    )
    def test_spellings(self, value, expected):
        assert PruneConfig.parse(value) == expected

    @pytest.mark.parametrize("key", ["enable_stage1", "enable_pruning"])
    @pytest.mark.parametrize("value", [0, 1, "true", None, []])
    def test_switches_are_true_or_false(self, key, value):
        with pytest.raises(PruneConfigError, match=f"{key}=.*must be true or false"):
            PruneConfig.parse({key: value})

    @pytest.mark.parametrize("value", [{"keep": 1}, {"stage1": {"taus": 1}}, {"stage1": 1}, {"stage1": "yes"}, {1: 2}])
    def test_wrong_keys_and_kinds(self, value):
        with pytest.raises(PruneConfigError, match=r"known keys|must be true, false or an object"):
            PruneConfig.parse(value)


class TestMerge:
    """What a mapping changes of a base."""

    BASE = PruneConfig(stage1=Stage1Config(tau=0.7, cluster_ratio=0.6), method=ATTENTION, keep_ratio=0.3, layers=(4,))

    def test_a_target_replaces_a_ratio_and_back(self):
        capped = PruneConfig.parse({"target_token_num": 50}, self.BASE)
        assert (capped.keep_ratio, capped.target_token_num) == (None, 50)
        again = PruneConfig.parse({"keep_ratio": 0.5}, capped)
        assert (again.keep_ratio, again.target_token_num) == (0.5, None)

    def test_stage1_changes_by_key(self):
        changed = PruneConfig.parse({"stage1": {"cluster_ratio": 0.2}}, self.BASE)
        assert changed.stage1 == Stage1Config(tau=0.7, cluster_ratio=0.2)
        assert (changed.method, changed.layers, changed.keep_ratio) == (ATTENTION, (4,), 0.3)

    def test_another_method_leaves_what_is_not_its_own(self):
        changed = PruneConfig.parse({"method": "uniform"}, self.BASE)
        assert (changed.layers, changed.params, changed.keep_ratio) == (None, {}, 0.3)

    def test_no_method_leaves_the_amount_to_stage1(self):
        changed = PruneConfig.parse({"method": "none"}, self.BASE)
        assert (changed.keep_ratio, changed.stage1) == (None, self.BASE.stage1)
        assert PruneConfig.parse({"method": "none", "keep_ratio": 0.1}, self.BASE).keep_ratio == 0.1

    def test_a_preset_forgets_the_base(self):
        assert PruneConfig.parse({"preset": "stage1_only"}, self.BASE) == preset("stage1_only")
        assert PruneConfig.parse("stage1_only", self.BASE) == preset("stage1_only")


class TestOverride:
    SERVER = PruneConfig(stage1=Stage1Config(cluster_ratio=0.5), method=ATTENTION, keep_ratio=0.4)

    def settings(self, override, config=None):
        return ServerSettings(config=config or self.SERVER, override=override)

    @pytest.mark.parametrize("override", ["none", "tighten", "any"])
    @pytest.mark.parametrize(
        "request_", [None, {}, {"keep_ratio": 0.4}, {"stage1": {}}, {"stage1": {"cluster_ratio": 0.5}}]
    )
    def test_asking_for_what_is_there_is_always_allowed(self, override, request_):
        assert self.settings(override).resolve(request_) == self.SERVER

    @pytest.mark.parametrize("request_", [{"keep_ratio": 0.1}, "baseline", {"stage1": {"tau": 0.7}}])
    def test_none_refuses_any_change(self, request_):
        with pytest.raises(PruneConfigError, match=r"allows no override; leave `prune` out.*--prune-override"):
            self.settings("none").resolve(request_)

    @pytest.mark.parametrize(
        ("request_", "changed"),
        [
            ("baseline", "method, stage1"),
            ("stage1_only", "method"),
            ({"method": "uniform"}, "method"),
            ({"layers": [3]}, "layers"),
            ({"params": {"text": "mean"}}, "params"),
            ({"stage1": False}, "stage1"),
            ('{"method": "uniform"}', "method"),
        ],
    )
    def test_tighten_refuses_another_kind(self, request_, changed):
        with pytest.raises(PruneConfigError, match=rf"changes {changed}, but this server allows only fewer tokens"):
            self.settings("tighten").resolve(request_)
        assert self.settings("any").resolve(request_) != self.SERVER

    @pytest.mark.parametrize(
        ("request_", "allowed"),
        [
            ({"keep_ratio": 0.39}, True),
            ({"keep_ratio": 0.41}, False),
            ({"target_token_num": 200}, True),
            ({"target_token_num": 201}, False),
            ({"stage1": {"cluster_ratio": 0.3}}, True),
            (
                {"stage1": {"cluster_ratio": 0.6}, "keep_ratio": 0.1},
                False,
            ),  # fewer in the end, more in the first layers
        ],
    )
    def test_tighten_compares_tokens(self, request_, allowed):
        settings = self.settings("tighten")
        requested = settings.resolve(request_)
        if allowed:
            settings.check_counts(requested, 1000)
        else:
            with pytest.raises(PruneConfigError, match=r"of 1000 tokens .*above this server's 200 \(500\)"):
                settings.check_counts(requested, 1000)
        self.settings("any").check_counts(requested, 1000)

    def test_tighten_compares_every_layer(self):
        config = PruneConfig(method=ATTENTION, layers=[1, 3], keep_ratio=[0.5, 0.5])
        settings = self.settings("tighten", config)
        settings.check_counts(settings.resolve({"keep_ratio": [0.5, 0.4]}), 1000)
        with pytest.raises(PruneConfigError, match="above this server's"):
            settings.check_counts(settings.resolve({"keep_ratio": [1.0, 0.25]}), 1000)

    def test_a_target_above_the_video_is_refused_by_every_policy(self):
        for override in ("tighten", "any"):
            settings = self.settings(override)
            with pytest.raises(PruneConfigError, match="target_token_num=101: the video has 100 tokens"):
                settings.check_counts(settings.resolve({"target_token_num": 101}), 100)

    def test_a_servers_own_cap_may_be_above(self):
        settings = self.settings("none", PruneConfig(method="uniform", target_token_num=500))
        settings.check_counts(settings.config, 100)

    @pytest.mark.parametrize("value", ["all", None, 3, ["any"], "Any"])
    def test_unknown_policies(self, value):
        with pytest.raises(PruneConfigError, match="none, tighten, any"):
            check_override_policy(value)

    def test_what_may_happen_decides_what_is_switched_on(self):
        assert not ServerSettings(config=PruneConfig(), override="tighten").may_prune
        assert ServerSettings(config=PruneConfig(), override="any").may_prune
        assert ServerSettings(config=preset("stage1_only"), override="none").may_prune


def test_a_configuration_needs_neither_torch_nor_vllm():
    code = (
        "import sys; from vllm_prune.budget import plan_counts; from vllm_prune.config import preset;"
        "plan_counts(preset('default'), 100); print(sorted({'torch', 'vllm', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "[]\n"


class TestWork:
    MERGING = PruneConfig(method="uniform", keep_ratio=0.5, params={"merge_dropped": True})

    def test_a_video_whose_dropped_tokens_take_too_long_to_merge_is_refused(self):
        for settings in (ServerSettings(config=self.MERGING), ServerSettings(config=PruneConfig(), override="any")):
            settings.check_counts(self.MERGING, 16_384)
            said = r"method='uniform': merge_dropped=True compares 8193 dropped tokens with 8193 kept ones.*67108864 or"
            with pytest.raises(PruneConfigError, match=said):
                settings.check_counts(self.MERGING, 16_386)

    def test_others_have_no_such_bound(self):
        settings = ServerSettings(config=PruneConfig(), override="any")
        for method in ("uniform", "dpp", "prunevid", "attention"):
            settings.check_counts(PruneConfig(method=method, keep_ratio=0.5), 10**6)
