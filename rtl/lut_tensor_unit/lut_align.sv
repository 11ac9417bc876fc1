// K binary16 numbers as integers that share an exponent. Combinational.
//
//   value_o[k] = trunc(significand[k] * 2^GUARD / 2^(top - exponent[k])), with its sign
//   exponent_o = top - 1, 0 .. 29;  top is the greatest exponent field, at least 1
//
// so that number k is value_o[k] * 2^(exponent_o - 24 - GUARD), less what was cut off. Zeros and subnormals
// have no hidden bit and count as exponent field 1, so a zero never moves the others. Infinity and NaN count
// as zero and set special_o.
`default_nettype none

module lut_align #(
    parameter int K     = 4,
    parameter int GUARD = 3   // bits kept below the significand, 0 to 29
) (
    input  wire  [        K*16-1:0] act_i,
    output logic [K*(12+GUARD)-1:0] value_o,
    output logic [             4:0] exponent_o,
    output logic                    special_o
);

  logic [K-1:0] special;
  for (genvar k = 0; k < K; k++) begin : g_number
    logic [4:0] field, exponent, top;  // top: the greatest up to this number
    logic [10:0] significand;
    logic [GUARD+10:0] size;
    assign field = act_i[k*16+10+:5];
    assign special[k] = field == 5'd31;
    assign exponent = field == 5'd0 || special[k] ? 5'd1 : field;
    assign significand = special[k] ? '0 : {field != 5'd0, act_i[k*16+:10]};
    if (k == 0) begin : g_first
      assign top = exponent;
    end else begin : g_next
      assign top = exponent > g_number[k-1].top ? exponent : g_number[k-1].top;
    end

    assign size = ((GUARD + 11)'(significand) << GUARD) >> (g_number[K-1].top - exponent);
    assign value_o[k*(12+GUARD)+:12+GUARD] = act_i[k*16+15] ? -{1'b0, size} : {1'b0, size};
  end

  assign exponent_o = g_number[K-1].top - 5'd1;
  assign special_o  = |special;

endmodule

`default_nettype wire
