// The half table of K signed integers. Combinational.
//
//   entry j = value[K-1] + sum over i < K-1 of (j[i] ? value[i] : -value[i]),   j = 0 .. 2^(K-1) - 1
//
// The other half are the negatives. An entry has WIDTH + log2(K) bits and cannot overflow. With TABLE_WIDTH
// less than that it loses its low bits: to nearest, halves upwards; what rounds up to 2^(TABLE_WIDTH-1)
// becomes one less.
`default_nettype none

module lut_table #(
    parameter int K           = 4,
    parameter int WIDTH       = 8,  // of a value
    parameter int TABLE_WIDTH = 10  // of an entry, at most WIDTH + $clog2(K)
) (
    input  wire  [             K*WIDTH-1:0] value_i,
    output logic [(TABLE_WIDTH<<(K-1))-1:0] table_o
);

  localparam int Full = WIDTH + $clog2(K);
  localparam int Drop = Full - TABLE_WIDTH;

  // Level i: the sums of value[K-1] and the first i others, with either sign. (A net for each sum: simulators
  // look anew at all of a vector when a part of it changes.)
  for (genvar i = 0; i < K; i++) begin : g_level
    for (genvar j = 0; j < (1 << i); j++) begin : g_sum
      logic [Full-1:0] sum;
      if (i == 0) begin : g_first
        assign sum = Full'($signed(value_i[(K-1)*WIDTH+:WIDTH]));
      end else if (j < (1 << (i - 1))) begin : g_minus
        assign sum = g_level[i-1].g_sum[j].sum - Full'($signed(value_i[(i-1)*WIDTH+:WIDTH]));
      end else begin : g_plus
        assign sum = g_level[i-1].g_sum[j-(1<<(i-1))].sum + Full'($signed(value_i[(i-1)*WIDTH+:WIDTH]));
      end
    end
  end

  for (genvar j = 0; j < (1 << (K - 1)); j++) begin : g_entry
    logic [Full-1:0] exact;
    assign exact = g_level[K-1].g_sum[j].sum;
    if (Drop == 0) begin : g_exact
      assign table_o[j*TABLE_WIDTH+:TABLE_WIDTH] = exact;
    end else begin : g_round
      logic [TABLE_WIDTH-1:0] kept;
      logic greatest;
      assign kept = exact[Full-1:Drop];
      assign greatest = kept == {1'b0, {(TABLE_WIDTH - 1) {1'b1}}};
      assign table_o[j*TABLE_WIDTH+:TABLE_WIDTH] = kept + TABLE_WIDTH'(exact[Drop-1] && !greatest);
      if (Drop > 1) begin : g_rest
        wire unused_rest = ^exact[Drop-2:0];
      end
    end
  end

endmodule

`default_nettype wire
